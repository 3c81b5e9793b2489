"""The states that files are made of: a few images of known processors, and their headers made wrong."""

from __future__ import annotations

import struct
from functools import cache
from typing import Final

from fpstate.arch import Cpu, Format, Layout
from fpstate.image import Image
from fpstate.testing import build_layout, random_image

from .draw import Draw

CPUS: Final = ("haswell", "zen4", "sapphire-rapids", "zen2", "ice-lake-sp")
COMPACTED: Final = ("zen4", "tiger-lake", "sapphire-rapids", "zen2")
ESCAPES: Final = (
    *(
        b"\x1b[31mX",
        b"\x1b[2J",
        b"\n\x1b]0;title\x07",
        b"\xc2\x9b31m",
        b"\xff\xfe",
        b"\r\x08\x7f",
        b"\0",
        b"name",
    ),
    *("\u202e".encode(), b"a" * 300),
)
"""Names that a terminal would obey, and other bad ones."""
PADDING: Final = b"\1"
"""Behind a state: read as notes, zeros would be a hundred thousand empty ones, and take the time of other files."""
_STEPS: Final = 3
_XCR0_AT, _HEADER_AT, _MXCSR_AT = 464, 512, 24


@cache
def _image(cpu: str, format: Format, number: int) -> Image:
    present = (None, 0, 7)[number]
    return random_image(build_layout(cpu, format), number, present=present)


def image(draw: Draw, *, compacted: bool = False, cpu: str | None = None) -> Image:
    """An image of some processor, as it should be."""
    cpu = cpu or draw.pick(COMPACTED if compacted else CPUS)
    return _image(cpu, Format.COMPACTED if compacted else Format.STANDARD, draw.below(_STEPS))


def standard(cpu: str) -> Layout:
    """The layout of a processor's whole state."""
    return Layout.standard(Cpu.catalog(cpu))


def altered(draw: Draw, data: bytes) -> bytes:
    """An XSAVE image whose header, MXCSR and software bytes may be wrong, and whose length may."""
    changed = bytearray(data)
    if len(changed) >= _HEADER_AT + 64:
        for at, size in (
            *((_MXCSR_AT, 4), (_MXCSR_AT + 4, 4), (0, 2), (4, 2), (_XCR0_AT, 8), (_XCR0_AT + 8, 8)),
            *((_XCR0_AT + 16, 4), (_HEADER_AT, 8), (_HEADER_AT + 8, 8), (_HEADER_AT + 16, 8)),
        ):
            right = int.from_bytes(changed[at : at + size], "little")
            changed[at : at + size] = draw.odd(right, size, 6).to_bytes(size, "little")
    if draw.chance(6):
        del changed[draw.below(len(changed) or 1) :]
    if draw.chance(6):
        changed += PADDING * max(
            0, draw.pick((1, 8, 64, 4096 - len(changed) % 4096, 65_536, 1_048_576 - len(changed)))
        )
    return bytes(changed)


def words(*values: int) -> bytes:
    """Numbers of eight bytes."""
    return struct.pack(f"<{len(values)}Q", *(value & (1 << 64) - 1 for value in values))
