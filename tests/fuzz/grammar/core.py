"""ELF cores of 64 and 32 bits, x32, FreeBSD and NetBSD: notes, and segments that name them as nobody should."""

from __future__ import annotations

import struct
from typing import Final

from fpstate.image.legacy import to_fsave, to_fxsave
from fpstate.testing.core import layout_note, register_set

from .draw import Draw
from .placing import placed, times
from .states import CPUS, PADDING, altered, image

_MACHINES: Final = {"x86-64": (2, 62, 336, 32), "x32": (1, 62, 296, 24), "i386": (1, 3, 144, 24)}
"""ELF class, machine number, size of elf_prstatus and where the thread's number is in it."""
_OWNERS: Final = (
    "CORE",
    "LINUX",
    "FreeBSD",
    "NetBSD-CORE@1",
    "NetBSD-CORE@99999999999",
    "",
    "GNU",
    "\x1b[31m",
)
_TYPES: Final = (1, 2, 3, 6, 41, 43, 35, 0x202, 0x205, 0x46E62B7F, 0x53494749, 0xFFFFFFFF)
_LARGE: Final = (4096, 65_536, 1 << 20, (1 << 20) + 8)


def core(draw: Draw, *, far: bool = False) -> bytes:
    """A core of some system."""
    machine = draw.pick(("x86-64", "x86-64", "x86-64", "i386", "x32"))
    draw.main = None if draw.chance(40) else draw.pick(CPUS)
    pieces = [draw.mangled(_notes(draw, machine), 10) for _ in range(1 + draw.few(4))]
    body, references = placed(draw, pieces, far=far)
    return draw.mangled(_file(draw, machine, body, references), 16)


def _notes(draw: Draw, machine: str) -> bytes:
    """Some notes: mostly those of a thread."""
    kinds = (*[_thread] * 10, _auxiliary, _auxiliary, _other, _other, _layout, _legacy, _legacy, _netbsd)
    made = b"".join(draw.pick(kinds)(draw, machine) for _ in range(1 + draw.few(4)))
    return made * times(draw) if draw.chance(10) else made


def _note(draw: Draw, name: str, kind: int, description: bytes) -> bytes:
    owner = name.encode("latin-1") + b"\0"
    header = (draw.odd(len(owner), 4, 3), draw.odd(len(description), 4, 4), draw.odd(kind, 4, 3))
    return struct.pack("<III", *header) + _padded(owner) + _padded(description)


def _thread(draw: Draw, machine: str) -> bytes:
    _, _, size, at = _MACHINES[machine]
    status = bytearray(size)
    struct.pack_into("<I", status, at, draw.odd(1 + draw.below(9), 4, 12))
    owner = "FreeBSD" if machine == "x86-64" and draw.chance(20) else "CORE"
    if owner == "FreeBSD":
        at = 40
    state = image(draw, cpu=draw.main)
    data = altered(draw, register_set(state, mxcsr_mask=draw.pick((0xFFFF, 0xFFFF, 0))))
    if draw.chance(6):
        data = data.ljust(draw.pick(_LARGE), PADDING)
    found = _note(draw, owner, 1, bytes(status)) + _note(
        draw, "LINUX" if owner == "CORE" else owner, 0x202, data
    )
    return found + (_layout_of(draw, layout_note(state.layout)) if draw.chance(30) else b"")


def _layout(draw: Draw, machine: str) -> bytes:
    return _layout_of(draw, layout_note(image(draw).layout))


def _layout_of(draw: Draw, records: bytes) -> bytes:
    changed = bytearray(records)
    for at in range(0, len(changed), 4):
        right = int.from_bytes(changed[at : at + 4], "little")
        changed[at : at + 4] = draw.odd(right, 4, 2).to_bytes(4, "little")
    if draw.chance(4):
        changed *= draw.pick((2, 40, 4000))
    return _note(draw, "LINUX", 0x205, draw.mangled(bytes(changed), 8))


def _auxiliary(draw: Draw, machine: str) -> bytes:
    pairs = (6, 4096, 16, draw.odd(0x1F8BFBFF, 4, 40), 51, draw.odd(3632, 4, 40), 0, 0)
    data = struct.pack("<8Q" if machine == "x86-64" else "<8I", *pairs)
    return _note(draw, "CORE", 6, data * (draw.pick((2, 40, 4000)) if draw.chance(8) else 1))


def _legacy(draw: Draw, machine: str) -> bytes:
    state = image(draw)
    if draw.chance(128):
        return _note(draw, "LINUX", 0x46E62B7F, draw.mangled(to_fxsave(state)))
    data = to_fsave(state) if machine == "i386" else to_fxsave(state)
    return _note(draw, draw.pick(("CORE", "FreeBSD")), 2, draw.mangled(data))


def _netbsd(draw: Draw, machine: str) -> bytes:
    owner = f"NetBSD-CORE@{draw.odd(1, 4, 20)}"
    data = struct.pack("<QQ", draw.odd(0x2E7, 8, 20), draw.odd(7, 8, 20)) + to_fxsave(image(draw))
    return _note(draw, owner, 41 if machine == "x86-64" else 43, draw.mangled(data.ljust(2384, b"\1")))


def _other(draw: Draw, machine: str) -> bytes:
    return _note(
        draw, draw.pick(_OWNERS), draw.pick(_TYPES), draw.noise(draw.pick((0, 4, 108, 512, 576, 832)))
    )


def _file(draw: Draw, machine: str, body: bytes, references: list[tuple[int, int]]) -> bytes:
    bits, number, _, _ = _MACHINES[machine]
    wide = bits == 2
    header_size, entry_size = (64, 56) if wide else (52, 32)
    extended = draw.chance(8)
    table = header_size + (64 if extended else 0)
    start = table + entry_size * len(references)
    headers = b"".join(_segment(draw, wide, start + at, size) for at, size in references)
    count = draw.odd(len(references), 2, 4)
    fields = (
        *(draw.odd(4, 2, 2), draw.odd(number, 2, 2), draw.odd(1, 4, 2), 0, draw.odd(table, 4, 3)),
        *(header_size, 0, header_size, draw.odd(entry_size, 2, 2), 0xFFFF if extended else count, 64, 1, 0),
    )
    ident = b"\x7fELF" + bytes([draw.odd(bits, 1, 2), draw.odd(1, 1, 2), 1]) + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", *fields)
    section = bytearray(64 if extended else 0)
    if extended:
        struct.pack_into("<I", section, 44 if wide else 28, draw.odd(len(references), 4, 40))
    return head + bytes(section) + headers + body


def _segment(draw: Draw, wide: bool, offset: int, size: int) -> bytes:
    kind = draw.odd(4, 4, 3)
    if wide:
        return struct.pack("<IIQQQQQQ", kind, 4, offset & (1 << 64) - 1, 0, 0, size, 0, 4)
    narrow = (1 << 32) - 1
    return struct.pack("<IIIIIIII", kind, offset & narrow, 0, 0, size & narrow, 0, 4, 4)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
