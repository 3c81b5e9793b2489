"""ELF guest programs, linked and relocatable: headers, dynamic entries, sections and symbols that claim."""

from __future__ import annotations

import struct
from typing import Final

from .draw import Draw
from .placing import times

_CODE: Final = b"\x90" * 60 + b"\x0f\x0b\xc3\x90"
_ADDRESSES: Final = (0, 0, 0, 0x1000, 0x40_0000, 1 << 63, (1 << 64) - 0x1000)
_TAGS: Final = (1, 2, 5, 6, 7, 8, 9, 10, 17, 18, 20, 23, 35, 36, 0x6FFFFEF5, 0x6FFFFFFB)


def program(draw: Draw, *, far: bool = False) -> bytes:
    """A program as a linker or a compiler leaves it."""
    made = _object(draw) if draw.chance(90) else _linked(draw)
    return draw.mangled(made, 30)


def _header(draw: Draw, kind: int, entry: int, programs: tuple[int, int], sections: tuple[int, int]) -> bytes:
    fields = (
        *(draw.odd(kind, 2, 3), draw.odd(62, 2, 2), 1, draw.odd(entry, 8, 5), draw.odd(programs[0], 8, 4)),
        *(draw.odd(sections[0], 8, 4), 0, 64, draw.odd(56, 2, 3), draw.odd(programs[1], 2, 4)),
        *(draw.odd(64, 2, 3), draw.odd(sections[1], 2, 4), draw.odd(max(sections[1] - 1, 0), 2, 4)),
    )
    ident = b"\x7fELF" + bytes([draw.odd(2, 1, 1), draw.odd(1, 1, 1), 1]) + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", *fields)


def _linked(draw: Draw) -> bytes:
    base = draw.pick(_ADDRESSES) if draw.chance(40) else 0
    dynamic = _dynamic(draw)
    extra = [draw.pick((1, 1, 2, 3, 4, 6, 7, 0x6474E551)) for _ in range(draw.few(6))]
    extra *= times(draw) if draw.chance(12) else 1
    count = 2 + len(extra)
    start = 64 + 56 * count
    data = start + len(_CODE)
    rows = [(1, 5, 0, base, data, data), (2, 6, data, base + data, len(dynamic), len(dynamic))]
    rows += [(kind, 6, data, base + 0x2000 * number, 64, 4096) for number, kind in enumerate(extra, 1)]
    table = b"".join(_program_header(draw, *row) for row in rows)
    entry = base + start
    return _header(draw, 3, entry, (64, count), (0, 0)) + table + _CODE + dynamic


def _program_header(
    draw: Draw, kind: int, flags: int, at: int, address: int, size: int, memory: int
) -> bytes:
    fields = (draw.odd(kind, 4, 3), draw.odd(flags, 4, 4), draw.odd(at, 8, 4), draw.odd(address, 8, 5))
    return struct.pack("<IIQQQQQQ", *fields, 0, draw.odd(size, 8, 4), draw.odd(memory, 8, 6), 4096)


def _dynamic(draw: Draw) -> bytes:
    pairs = [(5, 64), (6, 64), (10, 1), (11, 24)]
    pairs += [(draw.pick(_TAGS), draw.odd(64, 8, 60)) for _ in range(draw.few(6))]
    if draw.chance(8):
        pairs *= times(draw)
    return b"".join(struct.pack("<QQ", tag, value) for tag, value in pairs) + bytes(
        16 if not draw.chance(8) else 0
    )


def _object(draw: Draw) -> bytes:
    """Sections: null, code, data, symbols, their names, relocations, the sections' names."""
    names = b"\0.text\0.data\0.symtab\0.strtab\0.rela.text\0.shstrtab\0.text.entry\0\x1b[31m\0"
    symbol = struct.pack(
        "<IBBHQQ", draw.odd(1, 4, 4), draw.odd(0x12, 1, 4), 0, draw.odd(1, 2, 6), draw.odd(0, 8, 4), 8
    )
    symbols = bytes(24) + symbol * (times(draw) if draw.chance(12) else 1)
    text = b"\0_start\0" + (b"\x1b[31mX\0" if draw.chance(8) else b"other\0")
    relocations = struct.pack("<QQq", 0, draw.odd(1 << 32 | 1, 8, 30), 0) if draw.chance(16) else b""
    rows = (
        *((0, 0, 0, b"", 0, 0, 0, 0), (draw.pick((1, 1, 49)), 1, 6, _CODE, 0, 0, 16, 0)),
        *((7, draw.pick((1, 8)), 3, bytes(64), 0, 0, 8, 0), (13, 2, 0, symbols, 4, 1, 8, 24)),
        *((21, 3, 0, text, 0, 0, 1, 0), (29, 4, 0, relocations, 3, 1, 8, 24), (40, 3, 0, names, 0, 0, 1, 0)),
    )
    body, headers = b"", b""
    for name, kind, flags, data, link, info, alignment, entry in rows:
        place = (draw.odd(64 + len(body), 8, 4), draw.odd(len(data), 8, 4))
        kinds = (draw.odd(name, 4, 3), draw.odd(kind, 4, 3), draw.odd(flags, 8, 4), draw.odd(0, 8, 2))
        rest = (draw.odd(link, 4, 3), draw.odd(info, 4, 3), draw.odd(alignment, 8, 4), draw.odd(entry, 8, 4))
        headers += struct.pack("<IIQQQQIIQQ", *kinds, *place, *rest)
        body += data
    count = len(rows)
    return _header(draw, 1, 0, (0, 0), (64 + len(body), count)) + body + headers
