"""Minidumps made here: every thread read back whole, whichever way its layout is stated, or refused at its byte."""

import lzma
import struct

import pytest

from fpstate.arch import Component, Cpu, Format, Layout
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.image import differences
from fpstate.image.legacy import FXSAVE_LAYOUT
from fpstate.source.minidump import minidump_threads
from fpstate.source.open import open_source
from fpstate.source.stream import MemoryStream
from fpstate.testing import build_image, build_layout, random_image
from fpstate.testing.container import DumpedThread, minidump, windows_context, xstate_config

NAMES = ("zen4", "skylake-sp", "ice-lake-sp", "sapphire-rapids", "lunar-lake", "haswell")


def read(data, cpu=None):
    return minidump_threads(MemoryStream(data, "test.dmp"), cpu=cpu)


def state_of(name, format, seed=5):
    """An image with x87 and SSE present, as every CONTEXT has them, and all else by chance."""
    layout = build_layout(name, format)
    image = random_image(layout, seed)
    image.store.activate(Component.X87)
    image.store.activate(Component.SSE)
    return image


def dump_of(image, machine="x86-64", config=True, **options):
    context = windows_context(image, machine, **options)
    stated = xstate_config(image) if config else None
    return minidump([DumpedThread(77, context)], machine, config=stated)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("machine", ["x86-64", "i386"])
def test_every_register_comes_back_with_the_layout_that_the_dump_states(name, format, machine):
    image = state_of(name, format)
    (thread,) = read(dump_of(image, machine))
    assert (thread.tid, thread.machine, thread.image.layout_source) == (77, machine, "note")
    assert differences(thread.image, image, exact=True) == []
    assert thread.findings == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", Format)
def test_without_it_the_named_processor_decides(name, format):
    image = state_of(name, format)
    (thread,) = read(dump_of(image, config=False), Cpu.catalog(name))
    assert thread.image.layout_source == "given"
    assert differences(thread.image, image, exact=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_compaction_mask_is_enough_where_processors_agree(name):
    image = state_of(name, Format.COMPACTED)
    (thread,) = read(dump_of(image, config=False))
    assert thread.image.layout_source == "inferred"
    assert differences(thread.image, image, exact=True) == []


def test_a_standard_area_that_fits_several_processors_is_not_guessed():
    image = build_image(build_layout("ice-lake-sp"), {"ymm3": 1 << 200}, present=3)
    with pytest.raises(AmbiguousLayout, match="at byte") as caught:
        read(dump_of(image, config=False))
    assert {"ice-lake-sp", "skylake-sp"} <= set(caught.value.candidates)


def test_offsets_of_other_components_than_the_area_holds_are_not_used():
    whole = state_of("zen4", Format.COMPACTED)
    part = build_image(
        build_layout("zen4", Format.COMPACTED, 0x87), {"ymm1": 1 << 200, "zmm17": 3}, present=3
    )
    data = minidump([DumpedThread(1, windows_context(part))], config=xstate_config(whole))
    (thread,) = read(data)
    assert (thread.image, thread.image.layout_source) == (part, "inferred")


def test_an_area_at_another_distance_is_found_where_context_ex_says():
    image = state_of("zen4", Format.COMPACTED)
    for gap in (0, 7, 200):
        assert read(dump_of(image, gap=gap))[0].image == image


@pytest.mark.parametrize("machine", ["x86-64", "i386"])
def test_a_plain_context_has_x87_and_sse_and_says_so(machine):
    image = random_image(FXSAVE_LAYOUT, 3, present=3)
    (thread,) = read(dump_of(image, machine, config=False))
    assert thread.image == image
    assert (thread.image.layout_source, [each.id for each in thread.findings]) == ("format", ["SRC004"])


def test_on_x86_fsave_is_read_where_there_is_no_fxsave():
    image = build_image(FXSAVE_LAYOUT, {"st3": 33, "xmm1": 5}, present=3)
    (thread,) = read(dump_of(image, "i386", config=False, flags=0x1000F))
    assert (thread.image.registers["st3"], "xmm1" in thread.image.registers) == (33, False)


def test_a_context_without_floating_point_has_no_state():
    image = random_image(FXSAVE_LAYOUT, 3, present=3)
    (thread,) = read(dump_of(image, config=False, flags=0x100007))
    assert [each.id for each in thread.findings] == ["SRC003"]
    assert len(thread.image.registers) == 0


def test_a_thread_without_a_context_stays_and_has_no_state():
    context = windows_context(random_image(FXSAVE_LAYOUT, 3, present=3))
    data = minidump([DumpedThread(1, context), DumpedThread(2, context)])
    row = inside(data, 3) + 4
    known, unknown = read(patched(patched(data, row + 48 + 40, 0), row + 48 + 44, 0))
    assert (known.tid, unknown.tid, len(unknown.image.registers)) == (1, 2, 0)
    assert [each.id for each in unknown.findings] == ["SRC003"]


def test_extended_state_that_was_cut_off_is_unknown_and_not_initial():
    image = random_image(FXSAVE_LAYOUT, 3, present=3)
    (thread,) = read(dump_of(image, config=False, flags=0x10005F))
    assert [each.id for each in thread.findings] == ["SRC012"]
    assert "ymm0" not in thread.image.registers
    assert thread.image == image


def test_an_fxsave_area_that_was_overwritten_is_left_out():
    image = build_image(FXSAVE_LAYOUT, {"mxcsr": 0x1FA0, "xmm2": 3}, present=3)
    context = bytearray(windows_context(image))
    context[256:768] = b"\xaa" * 512
    (thread,) = read(minidump([DumpedThread(1, bytes(context))]))
    (finding,) = thread.findings
    assert (finding.id, finding.found, finding.expected) == ("SRC014", 0xAAAAAAAA, 0x1FA0)
    assert len(thread.image.registers) == 0
    context[52:56] = bytes(4)  # writers that do not keep the copy
    (thread,) = read(minidump([DumpedThread(1, bytes(context))]))
    assert [each.id for each in thread.findings] == ["SRC004"]


def test_the_thread_that_raised_is_shown_at_its_exception():
    one, two = (build_image(FXSAVE_LAYOUT, {"xmm1": value}, present=3) for value in (1, 2))
    context, exception = windows_context(one), windows_context(two)
    threads = read(minidump([DumpedThread(5, context), DumpedThread(6, context, exception)]))
    assert [(thread.tid, thread.image.registers["xmm1"]) for thread in threads] == [(5, 1), (6, 2)]
    assert [each.id for each in threads[1].findings] == ["SRC004", "SRC013"]


def test_a_context_may_be_shared_and_may_not_overlap_another():
    context = windows_context(random_image(FXSAVE_LAYOUT, 3, present=3))
    data = minidump([DumpedThread(1, context), DumpedThread(2, context)])
    at = inside(data, 3) + 4
    first = int.from_bytes(data[at + 44 :][:4], "little")
    one, two = read(patched(data, at + 48 + 44, first))
    assert (one.image is two.image, one.tid, two.tid) == (True, 1, 2)
    with pytest.raises(SourceError, match="begins before another one ends") as caught:
        read(patched(data, at + 48 + 44, first + 8))
    assert caught.value.offset == first + 8


class Forwards(MemoryStream):
    """A stream that minds being read backwards within some part of it."""

    def __init__(self, data, part):
        super().__init__(data, "forwards")
        self.reached, self.part = 0, part

    def read_at(self, offset, size):
        if offset in self.part:
            assert offset >= self.reached
            self.reached = offset + size
        return super().read_at(offset, size)


def test_contexts_are_read_forwards_in_whatever_order_threads_are_listed():
    images = [random_image(FXSAVE_LAYOUT, seed, present=3) for seed in range(5)]
    data = minidump([DumpedThread(seed, windows_context(image)) for seed, image in enumerate(images)])
    rows = inside(data, 3) + 4
    listed = [data[at : at + 48] for at in range(rows, rows + 240, 48)]
    grown = data + data[rows - 4 : rows] + b"".join(listed[number] for number in (3, 1, 4, 0, 2))
    moved = patched(grown, directory_entry(data, 3) + 8, len(data))
    first = int.from_bytes(listed[0][44:], "little")
    threads = minidump_threads(Forwards(moved, range(first, rows - 4)))
    assert [thread.tid for thread in threads] == [3, 1, 4, 0, 2]
    assert all(thread.image == images[thread.tid] for thread in threads)


def test_many_threads_and_xz(tmp_path):
    images = [state_of("zen4", Format.COMPACTED, seed) for seed in range(20)]
    data = minidump(
        [DumpedThread(seed, windows_context(image)) for seed, image in enumerate(images)],
        config=xstate_config(images[0]),
    )
    path = tmp_path / "x.dmp.xz"
    path.write_bytes(lzma.compress(data))
    threads = open_source(path)
    assert [thread.image for thread in threads] == images


def test_a_swapped_layout_is_noticed_by_these_comparisons():
    layout = build_layout("zen4")
    image = random_image(layout, 5, present=layout.mask)
    config = bytearray(xstate_config(image))
    at = 16 + 8 * Component.OPMASK
    struct.pack_into("<II", config, at, 896, 64)
    struct.pack_into("<II", config, at + 8, 960, 448)
    (thread,) = read(minidump([DumpedThread(1, windows_context(image))], config=bytes(config)))
    found = {each.register for each in differences(thread.image, image)}
    assert {"k1", "zmm1"} <= found


def patched(data, offset, value, size=4):
    return data[:offset] + value.to_bytes(size, "little") + data[offset + size :]


def directory_entry(data, kind):
    count, start = struct.unpack_from("<II", data, 8)
    return next(
        start + 12 * index
        for index in range(count)
        if int.from_bytes(data[start + 12 * index :][:4], "little") == kind
    )


def inside(data, kind):
    return int.from_bytes(data[directory_entry(data, kind) + 8 :][:4], "little")


CLEAN = dump_of(state_of("zen4", Format.COMPACTED))
CONTEXT = int.from_bytes(CLEAN[inside(CLEAN, 3) + 4 + 44 :][:4], "little")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 0x50444D4E, "no minidump"),
        (4, 0xA792, "version 0xa792"),
        (8, 0xFFFFFFFF, "4294967295 streams"),
        (8, 4096, "stream directory should have"),
        (12, 0xFFFFFFF0, "stream directory should have"),
        (directory_entry(CLEAN, 7), 8, "no SystemInfoStream"),
        (directory_entry(CLEAN, 3), 8, "no ThreadListStream"),
        (directory_entry(CLEAN, 3) + 4, 0xFFFFFFFF, "ThreadListStream ends at"),
        (directory_entry(CLEAN, 15) + 8, 0xFFFFFFFF, "MiscInfoStream ends at"),
        (inside(CLEAN, 7), 12, "architecture 65548|architecture 12"),
        (inside(CLEAN, 3), 0xFFFFFFFF, "4294967295 threads"),
        (inside(CLEAN, 3), 2, "2 threads"),
        (inside(CLEAN, 3) + 4 + 40, 0xFFFFFFFF, "claims 4294967295 bytes"),
        (inside(CLEAN, 3) + 4 + 40, 1000, "CONTEXT has 1232"),
        (inside(CLEAN, 3) + 4 + 44, 0xFFFFFFFF, "should have"),
        (CONTEXT + 48, 0x1007F, "without the 0x100000"),
        (CONTEXT + 1232 + 16, 0xFFFFFF00, "XSTATE area of"),
        (CONTEXT + 1232 + 16, 0, "XSTATE area of"),
        (CONTEXT + 1232 + 20, 63, "XSTATE area of 63"),
        (CONTEXT + 1232 + 20, 0xFFFFFFFF, "XSTATE area of 4294967295"),
        (CONTEXT + 1232 + 20, 64 + 256, "the XSTATE area has 320"),
        (CONTEXT + 1312 + 4, 1, "names components"),
        (CONTEXT + 1312 + 12, 0x80000001, "no known processor has"),
        (inside(CLEAN, 15) + 832 + 16 + 16, 4, "is stated to lie at 4"),
        (inside(CLEAN, 15) + 832 + 16 + 16, 0xFFFFFFFF, "is stated to lie at"),
        (inside(CLEAN, 15) + 832 + 16 + 20, 0xFFFFFFFF, "is stated to lie at"),
        (inside(CLEAN, 15) + 832 + 16 + 20, 300, "overlaps"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_byte(offset, value, message):
    assert read(CLEAN)
    with pytest.raises(SourceError, match=message) as caught:
        read(patched(CLEAN, offset, value))
    assert caught.value.offset is not None
    assert caught.value.offset >= 0


def test_thread_lists_that_are_aligned_are_read():
    at = inside(CLEAN, 3)
    size = int.from_bytes(CLEAN[directory_entry(CLEAN, 3) + 4 :][:4], "little")
    assert size == 4 + 48
    grown = CLEAN + CLEAN[at : at + 4] + bytes(4) + CLEAN[at + 4 : at + size]
    entry = directory_entry(CLEAN, 3)
    grown = patched(patched(grown, entry + 4, size + 4), entry + 8, len(CLEAN))
    assert read(grown)[0].image == read(CLEAN)[0].image


def test_standard_layouts_without_offsets_in_the_dump_keep_to_the_area():
    image = random_image(Layout.standard(Cpu.catalog("haswell")), 5, present=7)
    (thread,) = read(dump_of(image, config=False))
    assert (thread.image, thread.image.layout_source) == (image, "inferred")
