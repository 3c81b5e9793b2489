"""CRIU's core images: protobuf written by hand, so that fields repeat, contradict their size and their kind."""

from __future__ import annotations

import struct
from typing import Final

from .draw import Draw
from .placing import times
from .states import ESCAPES

_FIELDS: Final = ((2, 64, 4), (3, 8, 8), (4, 8, 8), (5, 8, 8), (6, 64, 8), (7, 128, 8), (8, 2, 4))
"""Of xsave: number, how many entries, and the bytes of each."""


def criu(draw: Draw, *, far: bool = False) -> bytes:
    """A core image of one thread."""
    parts = [_number(draw, 1, 1, 4), _message(draw, 2, _thread_info(draw)), _message(draw, 3, _name(draw))]
    if draw.chance(20):
        parts += [draw.pick(parts)] * times(draw)
    if draw.chance(20):
        parts.append(_unknown(draw))
    message = draw.mangled(b"".join(parts), 24)
    magic = struct.pack("<II", 0x54564319, draw.odd(0x55053847, 4, 2))
    return magic[4 if draw.chance(40) else 0 :] + struct.pack("<I", draw.odd(len(message), 4, 5)) + message


def _thread_info(draw: Draw) -> bytes:
    parts = [_message(draw, 2, _number(draw, 28, draw.pick((1, 2)), 4)), _message(draw, 3, _fpregs(draw))]
    return b"".join(parts + ([parts[-1]] if draw.chance(6) else []))


def _fpregs(draw: Draw) -> bytes:
    words = ((1, 0x37F), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0x1F80), (8, 0xFFFF))
    made = b"".join(_number(draw, number, value, 4) for number, value in words)
    made += _repeated(draw, 9, 32, 4) + _repeated(draw, 10, 64, 4)
    return made + (_message(draw, 13, _xsave(draw)) if not draw.chance(20) else b"")


def _xsave(draw: Draw) -> bytes:
    made = _number(draw, 1, draw.pick((7, 0x2E7, 0x602E7, 0)), 8)
    fields = _FIELDS if draw.chance(128) else _FIELDS[:1]
    made += b"".join(_repeated(draw, *field) for field in fields)
    if draw.chance(20):
        made += _message(draw, 9, _number(draw, 1, 1, 8) + _number(draw, 2, 4096, 8))
    return made


def _name(draw: Draw) -> bytes:
    name = draw.pick(ESCAPES) if draw.chance(50) else b"worker"
    return _tag(6, 2) + _varint(draw.odd(len(name), 2, 4)) + name


def _repeated(draw: Draw, number: int, count: int, width: int) -> bytes:
    """A repeated field: packed, one by one, or both; as many entries as there should be, or not."""
    count = draw.pick((0, 1, count - 1, count + 1, 2 * count, 5000)) if draw.chance(8) else count
    data = draw.noise(count * width)
    values = [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]
    if draw.chance(80):
        packed = b"".join(map(_varint, values))
        return _tag(number, 2) + _varint(draw.odd(len(packed), 4, 4)) + packed
    return b"".join(_tag(number, 0) + _varint(value) for value in values)


def _number(draw: Draw, number: int, value: int, size: int) -> bytes:
    return _tag(number, draw.odd(0, 1, 1) & 7) + _varint(draw.odd(value, size, 4))


def _message(draw: Draw, number: int, body: bytes) -> bytes:
    return _tag(number, 2) + _varint(draw.odd(len(body), 4, 3)) + body


def _unknown(draw: Draw) -> bytes:
    kinds = (
        _tag(99, 0) + b"\xff" * 9 + b"\1",
        _tag(98, 1) + bytes(8),
        _tag(97, 3) * 200,
        _tag(96, 2) + _varint(1 << 31),
        _tag(0, 2) + b"\0",
    )
    return draw.pick(kinds) * times(draw)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])
