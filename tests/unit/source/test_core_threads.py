"""Cores of every processor of the catalog, made here: read back whole, or refused."""

import lzma
import struct

import pytest

from fpstate.arch import Component, Cpu, Format, Layout
from fpstate.arch.layout import Place
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.image import differences
from fpstate.image.legacy import to_fsave, to_fxsave
from fpstate.source.core import core_threads
from fpstate.source.stream import MemoryStream
from fpstate.testing import build_image, random_image
from fpstate.testing.core import CoreNote, layout_note, linux_notes, register_set, write_core

THREADS = (4711, 4712, 4713)
INTEL_FLAGS, AMD_FLAGS = 0xBFEBFBFF, 0x178BFBFF


def read(data, cpu=None):
    return core_threads(MemoryStream(data, "test.core"), cpu=cpu)


def images(cpu, seed=1):
    layout = Layout.standard(cpu, cpu.xcr0)
    return [random_image(layout, seed + index) for index in range(len(THREADS))]


def core_of(made, **options):
    states = [(tid, register_set(image)) for tid, image in zip(THREADS, made, strict=True)]
    return write_core(linux_notes(states, **options))


def written_by_gdb(image):
    """The register set as gdb writes it: everything present, MXCSR_MASK 0."""
    full = build_image(image.layout, dict(image.registers.in_use(exact=True)), present=image.layout.mask)
    return register_set(full, mxcsr_mask=0)


@pytest.mark.parametrize("name", Cpu.catalog_names())
@pytest.mark.parametrize("how", ["note", "given", "inferred"])
def test_every_register_comes_back_whichever_way_the_layout_is_learnt(name, how):
    cpu = Cpu.catalog(name)
    made = images(cpu)
    data = core_of(made, layout=made[0].layout if how == "note" else None)
    threads = read(data, cpu=cpu if how == "given" else None)
    assert [thread.tid for thread in threads] == list(THREADS)
    for thread, image in zip(threads, made, strict=True):
        assert thread.image.layout_source == how
        assert thread.xcr0 == cpu.xcr0
        assert thread.findings == ()
        assert differences(thread.image, image, exact=True) == []


def test_the_stated_layout_wins_over_the_given_one():
    made = images(Cpu.catalog("zen4"))
    threads = read(core_of(made, layout=made[0].layout), cpu=Cpu.catalog("ice-lake-sp"))
    assert {thread.image.layout_source for thread in threads} == {"note"}
    assert differences(threads[0].image, made[0]) == []


def test_a_layout_with_two_components_swapped_is_noticed_by_this_comparison():
    made = images(Cpu.catalog("zen4"), seed=11)
    k, high = made[0].layout.place(Component.OPMASK), made[0].layout.place(Component.PKRU)
    places = [place for place in made[0].layout.places if place not in (k, high)]
    places += [Place(k.component, 2432, 64), Place(high.component, 832, 8)]
    wrong = Layout.from_places(Format.STANDARD, places)
    state = register_set(build_image(made[0].layout, {"k1": 5, "pkru": 0xC}))
    data = write_core(linux_notes([(1, state)], layout=made[0].layout))
    swapped = write_core(linux_notes([(1, state + bytes(56))], layout=wrong))
    right, misread = read(data)[0].image, read(swapped)[0].image
    assert {each.register for each in differences(right, misread)} == {
        "k0",
        "k1",
        "pkru",
    }  # PKRU's bytes became k0, k1's became nobody's


@pytest.mark.parametrize("machine", ["x86-64", "x32", "i386"])
def test_threads_of_each_abi_have_their_numbers(machine):
    image = build_image(Layout.standard(Cpu.catalog("zen4")), {"zmm3": 3 << 500})
    data = write_core(linux_notes([(tid, register_set(image)) for tid in THREADS], machine), machine)
    threads = read(data)
    assert [(thread.tid, thread.machine) for thread in threads] == [(tid, machine) for tid in THREADS]
    assert all(thread.image.registers["zmm3"] == 3 << 500 for thread in threads)


def test_only_a_size_that_fits_one_layout_is_taken_where_xcr0_is_not_stated():
    layout = Layout.standard(Cpu.catalog("ice-lake-sp"))
    data = write_core(linux_notes([(1, register_set(build_image(layout, {"xmm1": 1}), xcr0=0))]))
    with pytest.raises(AmbiguousLayout, match="at byte"):
        read(data)
    assert read(data, cpu=Cpu.catalog("ice-lake-sp"))[0].image.layout == layout
    avx = Layout.standard(Cpu.catalog("haswell"))
    known = write_core(linux_notes([(1, register_set(build_image(avx, {"ymm1": 1 << 200}), xcr0=0))]))
    assert read(known)[0].image.registers["ymm1"] == 1 << 200


@pytest.mark.parametrize(
    ("made_on", "given"),
    [("zen4", "ice-lake-sp"), ("ice-lake-sp", "zen5"), ("skylake-x", "zen4"), ("zen4", "zen1")],
)
def test_a_processor_that_cannot_have_made_the_state_is_refused(made_on, given):
    data = core_of(images(Cpu.catalog(made_on)))
    with pytest.raises(SourceError, match=r"another processor|but for XCR0"):
        read(data, cpu=Cpu.catalog(given))


@pytest.mark.parametrize(
    ("name", "mask", "lost"),
    [
        ("ice-lake-sp", 0xE7, {"OPMASK", "ZMM_HI256", "HI16_ZMM"}),
        ("ice-lake-sp", 0x2E7, {"OPMASK", "ZMM_HI256", "HI16_ZMM", "PKRU"}),
        ("alder-lake", 0x207, {"PKRU"}),
        ("haswell", 0x7, set()),
        ("skylake-sp", 0x2FF, set()),
        ("zen4", 0x2E7, set()),
        ("sapphire-rapids", 0x602E7, set()),
    ],
)
@pytest.mark.parametrize("hwcap", [None, AMD_FLAGS, INTEL_FLAGS])
def test_what_gdb_may_have_lost_is_left_out_unless_the_processor_cannot_be_an_amd(name, mask, lost, hwcap):
    layout = Layout.standard(Cpu.catalog(name), mask)
    image = random_image(layout, 5, present=mask)
    data = write_core(linux_notes([(1, written_by_gdb(image))], hwcap=hwcap))
    (thread,) = read(data)
    found = {Component(f.component).name for f in thread.findings if f.id == "SRC002"}
    assert found == (set() if hwcap == INTEL_FLAGS else lost)
    assert "SRC001" in {finding.id for finding in thread.findings}
    assert thread.xcr0 == mask
    kept = {place.component for place in thread.image.layout.places}
    assert kept == {place.component for place in layout.places} - {Component[name] for name in found}
    held = [each for each in differences(thread.image, image) if each.register in thread.image.registers]
    assert [each for each in held if not each.register.startswith(("ymm", "xmm"))] == []
    assert thread.image.registers["st3"] == image.registers["st3"]
    assert thread.image.registers["ymm3"] == image.registers["ymm3"]


@pytest.mark.parametrize(
    ("name", "xcr0"),
    [
        ("sapphire-rapids", 0x2E7),
        ("sapphire-rapids", 0xE7),
        ("diamond-rapids-model", 0x2E7),
        ("diamond-rapids-model", 0x802E7),
    ],
)
@pytest.mark.parametrize("how", ["inferred", "given", "note"])
def test_what_gdb_leaves_out_of_a_set_of_the_kernels_size_is_not_known(name, xcr0, how):
    """gdb 14 and later: the size of everything, an XCR0 without AMX, and nothing where the tiles are."""
    cpu = Cpu.catalog(name)
    whole = Layout.standard(cpu, cpu.xcr0)
    image = random_image(Layout.standard(cpu, xcr0), 5, present=xcr0)
    full = build_image(whole, dict(image.registers.in_use(exact=True)), present=xcr0)
    data = register_set(full, xcr0=xcr0, mxcsr_mask=0)
    core = write_core(linux_notes([(1, data)], layout=whole if how == "note" else None))
    (thread,) = read(core, cpu=cpu if how == "given" else None)
    assert [f.id for f in thread.findings] == ["SRC001", "SRC017", "SRC017"]
    assert [f.component for f in thread.findings[1:]] == [Component.TILECFG, Component.TILEDATA]
    assert (thread.image.layout_source, thread.image.layout.size, thread.xcr0) == (how, len(data), xcr0)
    assert not {"tilecfg", "tmm0", "palette_id"} & set(thread.image.registers)
    assert differences(thread.image, image, exact=True) == []


def test_a_set_of_the_kernels_size_is_taken_for_gdbs_only_if_it_is():
    """The control: the same size and XCR0 with an MXCSR_MASK, as gdb never writes it."""
    cpu = Cpu.catalog("sapphire-rapids")
    full = build_image(Layout.standard(cpu), {"k1": 5}, present=0x2E7)
    with pytest.raises(SourceError, match="no known layout has 11008 bytes"):
        read(write_core(linux_notes([(1, register_set(full, xcr0=0x2E7))])))


def test_a_processor_with_amx_that_is_named_lost_its_tiles_too():
    image = random_image(Layout.standard(Cpu.catalog("ice-lake-sp")), 5, present=0x2E7)
    data = write_core(linux_notes([(1, written_by_gdb(image))], hwcap=INTEL_FLAGS))
    assert {f.id for f in read(data)[0].findings} == {"SRC001"}
    named = read(data, cpu=Cpu.catalog("emerald-rapids"))[0]
    assert [f.id for f in named.findings] == ["SRC001", "SRC017", "SRC017"]


def test_whoever_names_the_processor_settles_what_gdb_lost():
    layout = Layout.standard(Cpu.catalog("ice-lake-sp"))
    image = random_image(layout, 5, present=layout.mask)
    data = write_core(linux_notes([(1, written_by_gdb(image))]))
    intel, amd = read(data, cpu=Cpu.catalog("ice-lake-sp"))[0], read(data, cpu=Cpu.catalog("zen4"))[0]
    assert (intel.image.layout_source, [f.id for f in intel.findings]) == ("given", ["SRC001"])
    assert differences(intel.image, image) == []
    assert "k1" not in amd.image.registers
    assert {f.id for f in amd.findings} == {"SRC001", "SRC002"}


def test_fxsave_and_fsave_notes_are_read_where_there_is_no_register_set():
    image = build_image(Layout.standard(Cpu.catalog("zen1")), {"xmm7": 77, "st0": 0x3FFF << 64 | 1 << 63})
    status = linux_notes([(7, b"")])[0]
    fx = CoreNote("CORE", 2, to_fxsave(image))
    (thread,) = read(write_core([status, fx]))
    assert (thread.image.registers["xmm7"], thread.image.layout_source) == (77, "format")
    assert [finding.id for finding in thread.findings] == ["SRC004"]
    status = linux_notes([(7, b"")], "i386")[0]
    fs = CoreNote("CORE", 2, to_fsave(image))
    (thread,) = read(write_core([status, fs], "i386"))
    assert thread.image.registers["st0"] == image.registers["st0"]
    assert "xmm0" not in thread.image.registers
    (thread,) = read(write_core([status, fs, CoreNote("LINUX", 0x46E62B7F, to_fxsave(image))], "i386"))
    assert thread.image.registers["xmm7"] == 77


@pytest.mark.parametrize("machine", ["x86-64", "i386"])
def test_freebsd_names_and_numbers_its_notes_in_its_own_way(machine):
    size, at = (224, 40) if machine == "x86-64" else (104, 24)
    status = bytearray(size)
    struct.pack_into("<I", status, at, 100744)
    image = build_image(Layout.standard(Cpu.catalog("zen3")), {"ymm2": 1 << 255, "pkru": 0x30})
    fpreg = to_fsave(image).ljust(176, b"\0") if machine == "i386" else to_fxsave(image)
    notes = [CoreNote("FreeBSD", 1, bytes(status)), CoreNote("FreeBSD", 2, fpreg)]
    (thread,) = read(write_core(notes, machine))
    assert (thread.tid, thread.image.layout_source) == (100744, "format")
    (thread,) = read(write_core([*notes, CoreNote("FreeBSD", 0x202, register_set(image))], machine))
    assert (thread.tid, thread.image.layout_source) == (100744, "inferred")
    assert differences(thread.image, image) == []


@pytest.mark.parametrize(("machine", "kind"), [("x86-64", 41), ("i386", 43)])
def test_netbsd_names_threads_in_the_owner_and_packs_components_in_its_own_order(machine, kind):
    image = random_image(Layout.standard(Cpu.catalog("zen4"), 0xE7), 9, present=0xE7)
    data = image.to_bytes()
    xstate = struct.pack("<QQ", 0xE7, image.xstate_bv) + data[:512] + data[576:]
    legacy = to_fsave(image) if machine == "i386" else to_fxsave(image)
    notes = [
        *(CoreNote("NetBSD-CORE@2", number, data) for number, data in ((33, bytes(64)), (35, legacy))),
        *(CoreNote("NetBSD-CORE@1", number, data) for number, data in ((35, legacy), (kind, xstate))),
    ]
    second, first = read(write_core(notes, machine))
    assert (second.tid, first.tid) == (2, 1)
    assert [finding.id for finding in second.findings] == ["SRC004"]
    assert (first.xcr0, first.findings) == (0xE7, ())
    assert differences(first.image, image, exact=True) == []


def test_a_thread_without_state_stays_and_says_so():
    made = images(Cpu.catalog("zen4"))[0]
    notes = linux_notes([(1, register_set(made)), (2, b"")])[:-1]
    known, unknown = read(write_core(notes))
    assert known.image == made
    assert (unknown.tid, [finding.id for finding in unknown.findings]) == (2, ["SRC003"])
    assert len(unknown.image.registers) == 0


def test_a_core_without_any_state_is_refused():
    with pytest.raises(SourceError, match="no floating-point state; threads: 1"):
        read(write_core(linux_notes([(1, b"")])[:-1]))


def test_a_second_layout_is_refused():
    """The last would count for every state, and reading each takes far longer than its bytes."""
    made = images(Cpu.catalog("zen4"))[0]
    notes = linux_notes([(1, register_set(made))])
    layout = CoreNote("LINUX", 0x205, layout_note(made.layout))
    assert read(write_core([*notes, layout]))[0].image == made
    with pytest.raises(SourceError, match="a second layout") as caught:
        read(write_core([*notes, layout, layout]))
    assert caught.value.offset is not None


def test_a_second_state_of_one_thread_is_refused():
    note = linux_notes([(1, register_set(images(Cpu.catalog("zen4"))[0]))])
    with pytest.raises(SourceError, match="a second NT_X86_XSTATE of thread 1"):
        read(write_core([*note, note[-1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda note: note[:-1], "no whole number of records"),
        (lambda note: b"", "no whole number of records"),
        (lambda note: note + note[:16], "occurs twice"),
        (lambda note: note.replace(struct.pack("<I", 832), struct.pack("<I", 830)), "overlaps"),
        (
            lambda note: note.replace(struct.pack("<I", 2432), struct.pack("<I", 0xFFFFFFF0)),
            "behind the stated size",
        ),
    ],
)
def test_a_layout_note_that_makes_no_sense_is_refused_with_its_byte(change, message):
    made = images(Cpu.catalog("zen4"))[0]
    notes = linux_notes([(1, register_set(made))])
    data = write_core([*notes, CoreNote("LINUX", 0x205, change(layout_note(made.layout)))])
    with pytest.raises(SourceError, match=message) as caught:
        read(data)
    assert caught.value.offset


def test_a_compressed_core_is_read_like_any_other(tmp_path):
    from fpstate.source.open import open_source

    made = images(Cpu.catalog("zen4"))
    path = tmp_path / "x.core.xz"
    path.write_bytes(lzma.compress(core_of(made, layout=made[0].layout)))
    assert [thread.image for thread in open_source(path)] == made
