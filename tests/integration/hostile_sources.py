"""Files that name the same bytes again and again, go back and forth, claim, repeat, or inflate."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import struct
from collections.abc import Callable, Sequence

from fpstate.arch import Cpu, Layout
from fpstate.image import Image
from fpstate.source.checkpoint import Checkpoint, GeneralRegisters, Piece, SavedState
from fpstate.source.guest_state import GuestState
from fpstate.source.state_file import encode
from fpstate.testing import random_image
from fpstate.testing.container import minidump, windows_context
from fpstate.testing.core import CoreNote, layout_note, linux_notes, register_set

HASWELL = Layout.standard(Cpu.catalog("haswell"))
WHOLE = Layout.standard(Cpu.catalog("sapphire-rapids"))
MIB = 1 << 20


def core(segments: Sequence[tuple[int, int]], body: bytes, *, count: int | None = None) -> bytes:
    """An ELF core whose note segments lie at these (offset, size) of its body, one after the other or not."""
    start = 64 + 56 * len(segments)
    ident = b"\x7fELF\2\1\1" + bytes(9)
    number = len(segments) if count is None else count
    header = struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, number, 0, 0, 0)
    rows = (struct.pack("<IIQQQQQQ", 4, 0, start + at, 0, 0, size, 0, 4) for at, size in segments)
    return ident + header + b"".join(rows) + body


def notes(*each: CoreNote) -> bytes:
    return b"".join(note.to_bytes() for note in each)


def thread(tid: int, state: bytes) -> bytes:
    return notes(*linux_notes([(tid, state)]))


def small_state(seed: int = 1) -> bytes:
    return register_set(random_image(HASWELL, seed))


def stated_layout() -> bytes:
    return notes(CoreNote("LINUX", 0x205, layout_note(HASWELL)))


def xz(data: bytes, dictionary: int = 1 << 20) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": dictionary}]
    return lzma.compress(data, filters=filters)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "xz": xz,
    "gzip": lambda data: gzip.compress(data, 1),
    "bzip2": lambda data: bz2.compress(data, 9),
}


def overlapping(count: int, size: int) -> bytes:
    """Segments that are all the same one: a thread and a register set of ``size`` bytes, as the layout allows."""
    layout, unit = stated_layout(), thread(1, small_state().ljust(size, b"\0"))
    return core([(0, len(layout))] + [(len(layout), len(unit))] * count, layout + unit)


def staggered(count: int) -> bytes:
    """Segments each of which begins one note further on and goes to the end: as many notes as half a square."""
    unit = notes(CoreNote("x", 99, b""))
    body = unit * count + thread(1, small_state())
    return core([(at * len(unit), len(body) - at * len(unit)) for at in range(count)], body)


def alternating(count: int, distance: int) -> bytes:
    """Segments far away and near in turn, none of which overlaps another."""
    states = [thread(number + 1, small_state(number % 7)) for number in range(2 * count)]
    size = max(map(len, states))
    near, far = 2 * MIB, distance
    body = bytearray(far + count * size)
    segments = []
    for number in range(count):
        for at, state in ((far, states[2 * number]), (near, states[2 * number + 1])):
            start = at + number * size
            body[start : start + len(state)] = state
            segments.append((start, len(state)))
    return core(segments, bytes(body))


def many_threads(count: int, layout: Layout = HASWELL, *, state: bool = True) -> bytes:
    """A core as an honest writer makes it, the layout last."""
    images = [register_set(random_image(layout, seed)) for seed in range(4)]
    status = [notes(linux_notes([(number + 1, b"")])[0]) for number in range(count)]
    units = [notes(CoreNote("LINUX", 0x202, image)) for image in images]
    body = b"".join(
        each + (units[number % 4] if state or number == 0 else b"") for number, each in enumerate(status)
    )
    body += notes(CoreNote("LINUX", 0x205, layout_note(layout)))
    return core([(0, len(body))], body)


def wide_sets(count: int) -> bytes:
    """Register sets of 64 KiB, none of which overlaps another: the largest that are read."""
    state = small_state().ljust(64 << 10, b"\0")
    body = stated_layout() + b"".join(thread(number + 1, state) for number in range(count))
    return core([(0, len(body))], body)


def counted_in_section_0(count: int, rows: int) -> bytes:
    """PN_XNUM: the number of program headers stands elsewhere, and all that are there are the same note segment."""
    unit = thread(1, small_state())
    segment = struct.pack("<IIQQQQQQ", 4, 0, 64 + 64, 0, 0, len(unit), 0, 4)
    head = b"\x7fELF\2\1\1" + bytes(9)
    at = 128 + len(unit)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, at, 64, 0, 64, 56, 0xFFFF, 0, 0, 0)
    section = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    return head + section + unit + segment * rows


def _dump(context: bytes, rows: bytes) -> bytes:
    """A minidump with one context, and a thread list of these rows."""
    system = struct.pack("<H54x", 9)
    start = 32 + 24
    places = [(7, len(system), start), (3, 4 + len(rows), start + len(system) + len(context))]
    head = struct.pack("<4sIIIIIQ", b"MDMP", 0xA793, 2, 32, 0, 0, 0)
    directory = b"".join(struct.pack("<III", *place) for place in places)
    return head + directory + system + context + struct.pack("<I", len(rows) // 48) + rows


def shared_context(count: int) -> bytes:
    """Threads of a minidump that all have one context."""
    context = windows_context(random_image(HASWELL, 3))
    row = struct.Struct("<I36xII")
    return _dump(context, b"".join(row.pack(tid, len(context), 56 + 56) for tid in range(count)))


def without_context(count: int) -> bytes:
    """Threads of a minidump without any state."""
    row = struct.Struct("<I36xII")
    return _dump(b"", b"".join(row.pack(tid, 0, tid) for tid in range(count)))


def scattered_contexts(count: int, distance: int) -> bytes:
    """A minidump whose threads' contexts lie far away and near in turn."""
    context = windows_context(random_image(HASWELL, 3))
    size = len(context)
    area = bytearray(distance + count * size)
    rows, row = [], struct.Struct("<I36xII")
    for number in range(count):
        for half, at in enumerate((distance, 2 * MIB)):
            start = at + number * size
            area[start : start + size] = context
            rows.append(row.pack(2 * number + half, size, 56 + 56 + start))
    return _dump(bytes(area), b"".join(rows))


def repeated_streams(count: int) -> bytes:
    """A minidump whose directory names the same streams over and over."""
    good = minidump([])
    head, entries = bytearray(good[:32]), good[32:56]
    body = good[56:]
    grown = 24 * count
    moved = b"".join(
        struct.pack("<III", kind, size, offset - 24 + grown)
        for kind, size, offset in struct.iter_unpack("<III", entries)
    )
    struct.pack_into("<I", head, 8, 2 * count)
    return bytes(head) + moved * count + body


def _criu(message: bytes) -> bytes:
    return struct.pack("<III", 0x54564319, 0x55053847, len(message)) + message


def _field(number: int, content: bytes) -> bytes:
    size, length = b"", len(content)
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    key = number << 3 | 2
    return bytes([key]) + size + bytes([length]) + content


def criu_of_numbers(size: int) -> bytes:
    """A CRIU image with one number of a byte after the other in a field of 64-bit numbers."""
    return _criu(
        b"\x08\x01" + _field(2, _field(3, _field(13, _field(7, b"\x01" * size) + _field(6, b"\x01" * 64))))
    )


def criu_of_messages(size: int) -> bytes:
    """A CRIU image in which the same message is stated again and again, and merged each time."""
    one = _field(2, _field(3, _field(13, _field(5, b"\x01" * 8))))
    return _criu(b"\x08\x01" + one * (size // len(one)))


def criu_of_names(size: int) -> bytes:
    """A CRIU image with a thread's name of this length."""
    fpregs = b"".join(bytes([number << 3, 0]) for number in range(1, 9))
    return _criu(b"\x08\x01" + _field(2, _field(3, fpregs)) + _field(3, _field(6, b"n" * size)))


def _guest(*memory: Piece, size: int = 64 << 10) -> bytes:
    cpu = Cpu.catalog("haswell")
    state = GuestState(Image.initial(Layout.standard(cpu)), cpu.user_mask, cpu)
    checkpoint = Checkpoint("canary", 1, 1, 3, 0, size, 0, 0, GeneralRegisters(), memory)
    return encode(SavedState(state, checkpoint))


def _resealed(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def guest_with_memory(size: int) -> bytes:
    """A guest state with this much memory, of which every page is stored."""
    return _guest(Piece(0, b"m" * size), size=size)


def guest_of_sections(count: int) -> bytes:
    """A guest state with so many pieces of memory that are empty."""
    data = bytearray(_guest())[:-32]
    data += struct.pack("<4sIQQ", b"MEMR", 1, 8, 0) * count
    struct.pack_into("<I", data, 12, 5 + count)
    struct.pack_into("<Q", data, 16, len(data) + 32)
    return _resealed(bytes(data) + bytes(32))


def guest_of_leaves(count: int) -> bytes:
    """A guest state whose processor has so many leaves."""
    leaves = b"".join(struct.pack("<6I", number, 0, 0, 0, 0, 0) for number in range(count))
    payload = struct.pack("<IIQII", 0xFFFF, 0, 0, count, 0) + leaves
    body = struct.pack("<4sIQ", b"CPU ", 1, len(payload)) + payload
    head = struct.pack("<8sIIQQ", b"\x93FPVSO\r\n", 1, 1, 32 + len(body) + 32, 0)
    return _resealed(head + body + bytes(32))


def distant(distance: int) -> bytes:
    """A core with one thread behind so many zeros."""
    unit = thread(1, small_state())
    return core([(distance, len(unit))], bytes(distance) + unit)


def program(segments: Sequence[tuple[int, int, int]], size: int, kind: int = 1) -> bytes:
    """An ELF program of ``size`` bytes with headers of one kind: (offset, size, address)."""
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    rows = (struct.pack("<IIQQQQQQ", kind, 7, at, address, 0, n, n, 0) for at, n, address in segments)
    return (head + b"".join(rows)).ljust(size, b"\1")


def object_file(sections: Sequence[bytes], body: bytes) -> bytes:
    """A relocatable object whose last section is that of the names."""
    head = b"\x7fELF\2\1\1" + bytes(9)
    count = len(sections)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64, 0, 64, 56, 0, 64, count, count - 1)
    return head + b"".join(sections) + body


def section(
    kind: int, offset: int, size: int, *, name: int = 0, flags: int = 0, link: int = 0, entry: int = 0
) -> bytes:
    return struct.pack("<IIQQQQIIQQ", name, kind, flags, 0, offset, size, link, 0, 1, entry)
