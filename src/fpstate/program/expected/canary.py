"""The answer of ``canary``, and the pattern it keeps in every register."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import islice

from fpstate.program.block import AVX, KNOWN_FEATURES, OPMASK, PKRU, TILECFG, TILEDATA, ZMM_HI256
from fpstate.program.expected.splitmix import MASK, stream

GENERAL = ("rbx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
CONTROL = ("fcw", "fsw", "ftw", "mxcsr")
POINTERS = ("fop", "fip", "fdp")
"""Compared where the processor keeps them although no exception is pending."""
STACK = tuple(f"st{index}" for index in range(8))
OPMASKS = tuple(f"k{index}" for index in range(8))
VECTORS = 32
SLOTS = (*GENERAL, *CONTROL, *STACK, *OPMASKS)
"""Names of the slots below ``FIRST_VECTOR``; the vector registers follow."""
FIRST_VECTOR = len(SLOTS)
PKRU_SLOT = FIRST_VECTOR + VECTORS
TILECFG_SLOT = PKRU_SLOT + 1
FIRST_ROW = TILECFG_SLOT + 1
"""The first row of the first tile: each row of 64 bytes is a slot."""
TILES, TILE_ROWS, ROW = 8, 16, 64
FIRST_POINTER = FIRST_ROW + TILES * TILE_ROWS
_WHOLE = (TILE_ROWS, ROW)
SLOT_COUNT = FIRST_POINTER + len(POINTERS)

FIELDS = (
    ("iterations", 0, 8),
    ("mismatches", 8, 8),
    ("first mismatching register", 16, 8),
    ("its iteration", 24, 8),
    ("what it held", 64, 64),
)
NONE = (1 << 64) - 1
IGNORED = ((32, 8),)
"""What the processor decides."""

_RESULT = struct.Struct("<4Q32x64s")
_PKRU_WORD = 10 + 1 + 2 * 8 + 8 + 8 * VECTORS
_SHAPE_WORD, _POINTER_WORD = _PKRU_WORD + 1, _PKRU_WORD + 2
_FIRST_TILE_WORD = _POINTER_WORD + len(POINTERS)
_WORDS = _FIRST_TILE_WORD + TILES * TILE_ROWS * ROW // 8
_SHAPED = 2
"""The bit of a seed whose tiles are not whole."""
_LOW_BITS = 0x7F7F7F7F7F7F7F7F
"""All but the highest of each byte."""
_FOP_BITS = 0x7FF
_CANONICAL = 17
"""Bits that an address below 2**47 lacks: processors keep 48 bits of FIP and FDP."""
_OPEN_KEY = 3
"""The bits of PKRU that close key 0, which is that of a program's own memory."""


def vector_kind(features: int) -> tuple[str, int, int]:
    """Name, size in bytes and number of the widest vector registers in ``features``."""
    if features & ZMM_HI256:
        return "zmm", 64, 32
    if features & AVX:
        return "ymm", 32, 16
    return "xmm", 16, 16


def has_whole_tiles(seed: int) -> bool:
    """Whether a canary's tiles have 16 rows of 64 bytes each, so that none of TILEDATA's 8192 bytes is zero."""
    return not seed & _SHAPED


def _without_zeros(word: int) -> int:
    """Return a word with 80H for each byte that is zero: one that is handed on must differ from an initial one."""
    return word | ~((word & _LOW_BITS) + _LOW_BITS | word | _LOW_BITS) & MASK


def _change(bits: int, least: int) -> int:
    """Return 16 bits in which a control register differs from its initial value: ``least`` in a byte without any."""
    return sum((bits & byte) or (least & byte) for byte in (0x00FF, 0xFF00))


@lru_cache(maxsize=64)
def _pattern(seed: int, features: int) -> dict[str, int]:
    count = _WORDS if features & TILEDATA else _FIRST_TILE_WORD
    drawn = tuple(_without_zeros(word) for word in islice(stream(seed), count))
    words = iter(drawn)
    registers = {name: next(words) for name in GENERAL}
    control = next(words)
    registers["fcw"] = 0x037F ^ _change(control & 0x0D00, 0x0400)
    registers["fsw"] = _change((control >> 16) & 0x7F3F, 0x0101)
    registers["ftw"] = 0xFF
    registers["mxcsr"] = 0x1F80 ^ _change((control >> 32) & 0xE07F, 0x2001)
    opcode, instruction, operand = drawn[_POINTER_WORD:][: len(POINTERS)]
    registers["fop"] = _change(opcode & _FOP_BITS, 0x0101)
    registers |= {"fip": instruction >> _CANONICAL, "fdp": operand >> _CANONICAL}
    for name in STACK:
        significand = next(words) | 1 << 63
        registers[name] = ((next(words) & 0xBFFF) | 0x0101) << 64 | significand
    opmasks = {name: next(words) for name in OPMASKS}
    if features & OPMASK:
        registers |= opmasks
    kind, size, count = vector_kind(features)
    for index in range(count):
        vector = struct.pack("<8Q", *islice(words, 8))
        registers[f"{kind}{index}"] = int.from_bytes(vector[:size], "little")
    if features & PKRU:
        registers["pkru"] = drawn[_PKRU_WORD] & 0xFFFFFFFF & ~_OPEN_KEY
    if features & TILECFG:
        registers |= _tiles(seed, drawn, features)
    return registers


def _tiles(seed: int, drawn: tuple[int, ...], features: int) -> dict[str, int]:
    """Return the configuration, and the tiles where the program may use them."""
    shapes = [_WHOLE] * TILES if has_whole_tiles(seed) else _shapes(drawn[_SHAPE_WORD])
    registers = {"tilecfg": int.from_bytes(_configuration(shapes), "little")}
    if features & TILEDATA:
        data = struct.pack(f"<{_WORDS - _FIRST_TILE_WORD}Q", *drawn[_FIRST_TILE_WORD:])
        for index, (rows, width) in enumerate(shapes):
            tile = (data[ROW * (TILE_ROWS * index + row) :][:width].ljust(ROW, b"\0") for row in range(rows))
            registers[f"tmm{index}"] = int.from_bytes(b"".join(tile), "little")
    return registers


def _shapes(word: int) -> list[tuple[int, int]]:
    """Return rows, and bytes of a row, of each tile; the last one is whole, so that the component's end is in use."""
    drawn = [(9 + (byte & 7), 4 + 4 * (byte >> 4)) for byte in word.to_bytes(TILES, "little")]
    return [*drawn[:-1], _WHOLE]


def _configuration(shapes: list[tuple[int, int]]) -> bytes:
    """Return the operand of LDTILECFG (SDM Vol. 1, 18.2): palette 1."""
    rows, widths = zip(*shapes, strict=True)
    return struct.pack(f"<B15x{TILES}H16x{TILES}B8x", 1, *widths, *rows)


def canary_pattern(seed: int, features: int = KNOWN_FEATURES) -> dict[str, int]:
    """What the canary keeps in each register: name to value, for the registers in ``features``.

    ``ftw`` is the abridged tag byte of FXSAVE; ``st`` values have 80 bits; the widest name of
    each vector register is given. ``tmm`` values have 1024 bytes, with zeros beyond the tile's
    shape; without any where ``has_whole_tiles(seed)``. Of words that are kept whole no byte is zero.
    """
    return dict(_pattern(seed, features))


def slot_name(slot: int, features: int = KNOWN_FEATURES) -> str:
    """The register of a slot number in the result."""
    if slot < FIRST_VECTOR:
        return SLOTS[slot]
    if slot >= FIRST_POINTER:
        return POINTERS[slot - FIRST_POINTER]
    if slot >= FIRST_ROW:
        tile, row = divmod(slot - FIRST_ROW, TILE_ROWS)
        return f"tmm{tile} row {row}"
    if slot >= PKRU_SLOT:
        return "pkru" if slot == PKRU_SLOT else "tilecfg"
    return f"{vector_kind(features)[0]}{slot - FIRST_VECTOR}"


def pointers_compared(result: bytes) -> bool:
    """Whether a canary that ended kept x87's pointers too; it cannot where the processor loses them."""
    return bool(int.from_bytes(result[32:40], "little"))


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes of a run in which no register was lost."""
    return _RESULT.pack(argument, 0, NONE, NONE, bytes(64))


def explain(result: bytes, seed: int, argument: int, features: int) -> str | None:
    """Which register was lost first, and when; None when the result does not say."""
    if len(result) != _RESULT.size:
        return None
    _, mismatches, slot, iteration, found = _RESULT.unpack(result)
    if slot >= SLOT_COUNT:
        return None
    name = slot_name(slot, features)
    register, _, row = name.partition(" row ")
    expected = canary_pattern(seed, features).get(register)
    if expected is not None and row:
        expected = expected >> 8 * ROW * int(row) & (1 << 8 * ROW) - 1
    if expected is None:
        return None
    return (
        f"{mismatches} mismatches, the first in {name} at iteration {iteration}: "
        f"holds {int.from_bytes(found, 'little'):#x} instead of {expected:#x}"
    )
