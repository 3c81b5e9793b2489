"""Compression around a file: several members, empty ones, compression in compression, false claims, right checksums."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from .draw import Draw
from .states import ESCAPES

_CHECKS: Final = (lzma.CHECK_CRC64, lzma.CHECK_CRC32, lzma.CHECK_SHA256, lzma.CHECK_NONE)
_BEHIND: Final = (bytes(16), bytes(4096), b"junk", b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0")
_EMPTY: Final = (1, 3, 50, 2000)
_BOMB: Final = 6 << 20


def wrapped(draw: Draw, data: bytes) -> bytes:
    """The file compressed, now and then twice."""
    if draw.chance(8):
        data += bytes(_BOMB)
    made = _members(draw, data)
    if draw.chance(24):
        made = _members(draw, made)
    if draw.chance(20):
        made = made[: draw.below(len(made)) or 1] if draw.chance(128) else draw.mangled(made, 255)
    return made


def _members(draw: Draw, data: bytes) -> bytes:
    """One member, or several, and what lies behind them."""
    codec = draw.pick(tuple(CODECS))
    cuts = sorted(draw.below(len(data) + 1) for _ in range(draw.few(4))) if draw.chance(60) else []
    edges = [0, *cuts, len(data)]
    made = [CODECS[codec](draw, data[a:b]) for a, b in pairwise(edges)]
    if draw.chance(10):
        made.insert(draw.below(len(made) + 1), CODECS[codec](draw, b"") * draw.pick(_EMPTY))
    if draw.chance(10):
        made.append(CODECS[draw.pick(tuple(CODECS))](draw, data[:100]))
    return b"".join(made) + (draw.pick(_BEHIND) if draw.chance(30) else b"")


def _gzip(draw: Draw, data: bytes) -> bytes:
    if not draw.chance(40):
        return gzip.compress(data, 1, mtime=0)
    flags = draw.below(32)
    packed = zlib.compressobj(1, wbits=-15)
    body = packed.compress(data) + packed.flush()
    header = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6)
    header += struct.pack("<H", 5) + b"extra" if flags & 4 else b""
    header += draw.pick(ESCAPES).replace(b"\0", b"") + b"\0" if flags & 8 else b""
    header += b"comment\0" if flags & 16 else b""
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF) if flags & 2 else b""
    crc, size = draw.odd(zlib.crc32(data), 4, 30), draw.odd(len(data), 4, 30)
    return header + body + struct.pack("<II", crc, size)


def _xz(draw: Draw, data: bytes) -> bytes:
    check = draw.pick(_CHECKS)
    if not draw.chance(30):
        return lzma.compress(data, check=check, preset=0)
    # The dictionary is stated in the header, whatever is used of it: 64 KiB to 1.5 GiB, past the decoder's limit.
    made = bytearray(lzma.compress(data, check=check, preset=0))
    size = (made[12] + 1) * 4
    header = made[12 : 12 + size - 4]
    at = header.find(b"\x21\x01")
    if at >= 0:
        header[at + 2] = draw.pick((8, 20, 30, 38, 40))
        made[12 : 12 + size] = header + struct.pack("<I", zlib.crc32(header))
    return bytes(made)


def _zstd(draw: Draw, data: bytes) -> bytes:
    """Stored blocks under a window of any size: no library is needed to write them."""
    window = draw.pick((0x60, 0x60, 0x88, 0x90, 0xF8)) if draw.chance(40) else 0x60
    made = b"\x28\xb5\x2f\xfd\0" + bytes([window])
    pieces = [data[at : at + 65_536] for at in range(0, len(data), 65_536)] or [b""]
    for number, piece in enumerate(pieces):
        # A run of one byte is a block of its own kind, so that zeros take four bytes.
        run = len(set(piece)) == 1
        head = (number == len(pieces) - 1) | (2 if run else 0) | draw.odd(len(piece), 2, 2) << 3
        if len(piece) == 65_536:
            head |= 65_536 << 3
        made += head.to_bytes(3, "little") + (piece[:1] if run else piece)
    return made


CODECS: Final[dict[str, Callable[[Draw, bytes], bytes]]] = {
    "gzip": _gzip,
    "xz": _xz,
    "bzip2": lambda draw, data: bz2.compress(data, draw.pick((1, 9))),
    "zstd": _zstd,
}
