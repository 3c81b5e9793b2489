"""Cores made to do harm: each is read or refused with an error of ours, soon and in little memory."""

import os
import random
import struct
import time
import tracemalloc

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.command.register_report import Wanted, describe
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.source.core import core_threads
from fpstate.source.note import read_core
from fpstate.source.stream import MemoryStream
from fpstate.testing import random_image
from fpstate.testing.core import CoreNote, linux_notes, register_set, write_core

MUTATIONS = 200_000 if os.environ.get("FPSTATE_LONG") else 20_000
SEED = 0xC02E
SECONDS_PER_CORE = 1.0


def seeds():
    """A few small cores of different kinds, to be mutated."""
    zen4, haswell = Cpu.catalog("zen4"), Cpu.catalog("haswell")
    for cpu, machine in ((zen4, "x86-64"), (haswell, "x32"), (zen4, "i386")):
        image = random_image(Layout.standard(cpu), 3)
        states = [(7, register_set(image)), (8, register_set(image))]
        yield write_core(linux_notes(states, machine, layout=image.layout, hwcap=1), machine)
        yield write_core(linux_notes(states[:1], machine), machine)
        yield write_core(linux_notes([(7, register_set(image, mxcsr_mask=0))], machine), machine)
    status = linux_notes([(9, b"")])[0]
    yield write_core([status, CoreNote("CORE", 2, bytes(512))])
    yield write_core(
        [CoreNote("NetBSD-CORE@1", 35, bytes(108)), CoreNote("NetBSD-CORE@1", 43, bytes(2384))], "i386"
    )


INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
)


def mutate(data, source):
    """Change a few bytes or fields, most in the first KiB, where the headers are; cut, repeat or insert a part."""
    data = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 3, 8))):
        reach = min(len(data), source.choice((64, 160, 1024, len(data)))) or 1
        at = source.randrange(reach)
        kind = source.randrange(8)
        if kind < 3:
            data[at : at + 1] = bytes([source.randrange(256)])
        elif kind < 6:
            size = source.choice((2, 4, 8))
            data[at : at + size] = (source.choice(INTERESTING) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif kind == 6:
            del data[at : at + source.choice((1, 8, 60, len(data)))]
        else:
            data[at:at] = data[source.randrange(len(data)) :][: source.randrange(1, 600)] if data else b"x"
    return bytes(data)


def attempt(data, decode=True):
    """Read, and decode everything; return what came of it."""
    try:
        threads = core_threads(MemoryStream(data, "hostile"))
    except AmbiguousLayout as error:
        return "ambiguous" if "at byte" in str(error) else "no place"
    except SourceError as error:
        placed = error.offset is not None and error.offset >= 0
        return "refused" if placed or "no floating-point state" in str(error) else "no place"
    for thread in threads if decode else ():
        describe(thread, Wanted(all=True, lane_type="f32"), views=False)
    return "read"


def test_mutated_cores_are_read_or_refused_soon_and_in_little_memory():
    source = random.Random(SEED)
    originals = list(seeds())
    assert {attempt(data) for data in originals} == {"read"}
    outcomes = dict.fromkeys(("read", "refused", "ambiguous"), 0)
    slowest = 0.0
    for number in range(MUTATIONS):
        data = mutate(source.choice(originals), source)
        before = time.thread_time()
        try:
            outcomes[attempt(data, decode=number % 16 == 0)] += 1  # decoding is what takes the time
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {SEED:#x}") from error
        slowest = max(slowest, time.thread_time() - before)
    assert slowest < SECONDS_PER_CORE
    assert outcomes["refused"] > MUTATIONS // 10
    assert outcomes["read"] > MUTATIONS // 10


def test_mutated_cores_take_little_memory():
    source = random.Random(SEED + 1)
    originals = list(seeds())
    tracemalloc.start()
    try:
        for _ in range(100):
            data = mutate(source.choice(originals), source)
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            attempt(data)
            assert tracemalloc.get_traced_memory()[1] - start < 4 << 20
    finally:
        tracemalloc.stop()


def one_note(claims, **note):
    return write_core([CoreNote("LINUX", 0x202, bytes(832), claims=claims), CoreNote("x", 1, b"")], **note)


@pytest.mark.parametrize("claims", [833 + 64, 1 << 20, 0xFFFFFFFF, 0xFFFFFFFC])
def test_a_note_that_claims_more_than_its_segment_has_is_refused_at_its_byte(claims):
    with pytest.raises(SourceError, match=rf"claim 6 and {claims} bytes") as caught:
        core_threads(MemoryStream(one_note(claims), "hostile"))
    assert caught.value.offset == 64 + 56


class Endless:
    """A file of 8 EiB that begins as a core and goes on with zeros."""

    name, size = "endless", 1 << 63

    def __init__(self, data):
        self.data = data

    def read_at(self, offset, size):
        return self.data[offset : offset + size].ljust(size, b"\0")


def test_a_note_of_4_gib_in_a_file_that_has_them_is_refused_without_reading_it():
    data = bytearray(one_note(0xFFFFFFF0))
    struct.pack_into("<Q", data, 64 + 32, 1 << 40)
    with pytest.raises(SourceError, match="claims 4294967280 bytes"):
        core_threads(Endless(bytes(data)))


def test_endless_empty_notes_and_program_headers_come_to_an_end():
    data = bytearray(write_core([]))
    struct.pack_into("<Q", data, 64 + 32, 1 << 40)
    before = time.thread_time()
    with pytest.raises(SourceError, match="more than 524288 notes"):
        list(read_core(Endless(bytes(data))).notes())
    data = bytearray(write_core([]))
    struct.pack_into("<H", data, 56, 0xFFFF)
    struct.pack_into("<Q", data, 40, len(data))
    data += bytes(44) + b"\xff\xff\xff\xff"
    with pytest.raises(SourceError, match="program headers") as caught:
        read_core(Endless(bytes(data)))
    assert caught.value.offset == 56
    assert time.thread_time() - before < 30


def test_more_segments_than_the_header_can_count_are_counted_in_section_0():
    image = random_image(Layout.standard(Cpu.catalog("zen4")), 1)
    plain = bytearray(write_core(linux_notes([(1, register_set(image))])))
    section = len(plain)
    struct.pack_into("<H", plain, 56, 0xFFFF)
    struct.pack_into("<Q", plain, 40, section)
    plain += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    (thread,) = core_threads(MemoryStream(bytes(plain), "many"))
    assert thread.image == image


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x7fELG", "is no ELF file"),
        (4, b"\3", "ELF class 3"),
        (5, b"\2", "data encoding 2"),
        (16, b"\2", "type 2, not a core"),
        (18, b"\xb7", "machine 183"),
        (18, b"\3", "machine 3 in ELF class 64"),
        (54, b"\x20", "program headers of 32 bytes"),
        (72, b"\xff" * 7, "the file at"),
    ],
)
def test_headers_that_are_no_cores_are_refused_at_their_byte(offset, value, message):
    data = bytearray(next(seeds()))
    data[offset : offset + len(value)] = value
    with pytest.raises(SourceError, match=message) as caught:
        core_threads(MemoryStream(bytes(data), "x"))
    assert caught.value.offset is not None
