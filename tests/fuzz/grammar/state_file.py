"""Guest states in files: sections that repeat, contradict and claim, under a length and a checksum that are right."""

from __future__ import annotations

import hashlib
import struct
from functools import cache
from typing import Final

from fpstate.arch import Cpu, Format
from fpstate.source.checkpoint import Checkpoint, GeneralRegisters, Piece, SavedState
from fpstate.source.guest_state import GuestState
from fpstate.source.state_file import encode
from fpstate.testing import build_layout, random_image

from .draw import Draw
from .placing import times
from .states import CPUS, ESCAPES

_HEADER: Final = struct.Struct("<8sIIQQ")
_SECTION: Final = struct.Struct("<4sIQ")
_TAGS: Final = (b"CPU ", b"CTRL", b"IMAG", b"REGS", b"PROG", b"MEMR", b"XXXX", b"\x1b[31", b"\0\0\0\0")
_START: Final = 0x10_0000
Section = tuple[bytes, int, bytes]


@cache
def _base(cpu: str, format: Format, running: bool) -> tuple[Section, ...]:
    """The sections of a state that is whole."""
    made = Cpu.catalog(cpu)
    state = GuestState(random_image(build_layout(made, format, made.user_mask), 5), made.user_mask, made)
    checkpoint = Checkpoint(
        *("x87_pi", 1, 2, 7, _START, 65_536, _START, _START + 32_768, GeneralRegisters()),
        (Piece(_START, b"\x90" * 4096), Piece(_START + 32_768, bytes(range(256)))),
    )
    data = encode(SavedState(state, checkpoint if running else None))
    sections, at = [], _HEADER.size
    while at < len(data) - 32:
        tag, flags, size = _SECTION.unpack_from(data, at)
        sections.append((tag, flags, data[at + _SECTION.size : at + _SECTION.size + size]))
        at += _SECTION.size + size + -size % 8
    return tuple(sections)


def base_sections(cpu: str, *, running: bool = False) -> list[Section]:
    """The sections of a state that is whole, of a running guest or of a processor alone: tag, flags, payload."""
    return list(_base(cpu, Format.STANDARD, running))


def sealed(sections: list[Section]) -> bytes:
    """A file of these sections, with the count, the length and the checksum that they have."""
    body = b"".join(
        _SECTION.pack(tag, flags, len(payload)) + payload + bytes(-len(payload) % 8)
        for tag, flags, payload in sections
    )
    content = _HEADER.pack(b"\x93FPVSO\r\n", 1, len(sections), _HEADER.size + len(body) + 32, 0) + body
    return content + hashlib.sha256(content).digest()


def state_file(draw: Draw, *, far: bool = False) -> bytes:
    """A guest state; its checksum is wrong in few."""
    format = draw.pick((Format.STANDARD, Format.COMPACTED))
    sections = [_altered(draw, *each) for each in _base(draw.pick(CPUS), format, draw.chance(128))]
    if draw.chance(30):
        _rearrange(draw, sections)
    body = b"".join(_section(draw, *section) for section in sections)
    size = _HEADER.size + len(body) + 32
    fields = (draw.odd(1, 4, 1), draw.odd(len(sections), 4, 2), draw.odd(size, 8, 2), draw.odd(0, 8, 4))
    content = _HEADER.pack(b"\x93FPVSO\r\n", *fields) + draw.mangled(body, 10)
    if len(content) + 32 != size and not draw.chance(20):
        content = content[:16] + struct.pack("<Q", len(content) + 32) + content[24:]
    digest = hashlib.sha256(content).digest()
    return content + (draw.noise(32) if draw.chance(4) else digest)


def _section(draw: Draw, tag: bytes, flags: int, payload: bytes) -> bytes:
    header = _SECTION.pack(tag, draw.odd(flags, 4, 2), draw.odd(len(payload), 8, 2))
    return header + payload + bytes(-len(payload) % 8)


def _rearrange(draw: Draw, sections: list[Section]) -> None:
    way = draw.below(5)
    chosen = draw.below(len(sections))
    if way == 0:
        sections += [sections[chosen]] * times(draw)
    elif way == 1:
        sections.reverse()
    elif way == 2:
        del sections[chosen]
    elif way == 3:
        sections.insert(chosen, (draw.pick(_TAGS), draw.below(2), draw.noise(draw.pick((0, 8, 100)))))
    else:
        sections += [(b"MEMR", 1, struct.pack("<Q", _START + draw.below(65_536)) + bytes(64))] * times(draw)


def _altered(draw: Draw, tag: bytes, flags: int, payload: bytes) -> Section:
    changed = bytearray(payload)
    fields = {
        b"CPU ": ((0, 4), (4, 4), (8, 8), (16, 4), (20, 4)),
        b"CTRL": ((0, 8), (8, 8), (16, 8), (24, 8), (32, 4)),
        b"IMAG": ((0, 4), (4, 4), (8, 8)),
        b"PROG": tuple((at, 8) for at in range(0, 56, 8)),
        b"MEMR": ((0, 8),),
    }
    for at, size in fields.get(tag, ()):
        _odd_at(draw, changed, at, size, 4)
    if tag == b"CPU ":
        _leaves(draw, changed)
    if tag == b"IMAG":
        _image(draw, changed)
    if tag == b"PROG" and draw.chance(40):
        name = draw.pick(ESCAPES)
        changed = changed[:56] + struct.pack("<II", len(name), 0) + name
    if tag == b"CPU " and draw.chance(20):
        name, length = draw.pick(ESCAPES), int.from_bytes(changed[20:24], "little")
        if length <= len(changed):
            changed = changed[:20] + struct.pack("<I", len(name)) + changed[24 : len(changed) - length] + name
    return tag, flags, draw.mangled(bytes(changed), 4)


def _leaves(draw: Draw, changed: bytearray) -> None:
    """CPUID leaves: sizes and offsets of components that no processor has."""
    for at in range(24, len(changed) - 24, 24):
        if int.from_bytes(changed[at : at + 4], "little") == 0xD:
            for word in range(2, 6):
                _odd_at(draw, changed, at + 4 * word, 4, 1)


def _image(draw: Draw, changed: bytearray) -> None:
    count = int.from_bytes(changed[4:8], "little")
    end = 16 + 16 * min(count, 64)
    for at in range(16, min(end, len(changed) - 4), 4):
        _odd_at(draw, changed, at, 4, 1)
    for at, size in ((24, 4), (512, 8), (520, 8), (528, 8)):
        _odd_at(draw, changed, end + at, size, 6)


def _odd_at(draw: Draw, changed: bytearray, at: int, size: int, odds: int) -> None:
    if at + size <= len(changed):
        right = int.from_bytes(changed[at : at + size], "little")
        changed[at : at + size] = draw.odd(right, size, odds).to_bytes(size, "little")
