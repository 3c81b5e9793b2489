"""The answer of ``probe``: a fresh context holds nothing but its initial configuration."""

from __future__ import annotations

import struct

from fpstate.errors import ProgramError
from fpstate.program.block import ENTRY_PKRU, ENTRY_RFLAGS, OPMASK, PKRU, TILECFG, TILEDATA
from fpstate.program.expected.canary import ROW, TILES, vector_kind

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
_X87 = 160
_OPMASK = 272
_PKRU = 336
_CHOSEN = 384
_TILE_SIZE = 1024
_TILECFG = _CHOSEN + _TILE_SIZE
SIZE = _TILECFG + 64
_FIRST_TILE = 2
_ST0 = _X87 + 28

FIELDS = (
    ("what was chosen", 0, 8),
    ("rflags", 8, 8),
    *((name, 16 + 8 * index, 8) for index, name in enumerate(GENERAL)),
    ("return slot", 144, 8),
    ("mxcsr", 152, 4),
    ("fcw", _X87, 2),
    ("fsw", _X87 + 4, 2),
    ("ftw", _X87 + 8, 2),
    *((f"st{index}", _ST0 + 10 * index, 10) for index in range(8)),
    *((f"k{index}", _OPMASK + 8 * index, 8) for index in range(8)),
    ("pkru", _PKRU, 4),
    ("fip", 344, 8),
    ("fdp", 352, 8),
    ("fop", 360, 2),
    *((f"vector {index}", _CHOSEN + 64 * index, 64) for index in range(16)),
    ("tilecfg", _TILECFG, 64),
)
_OPTIONAL = {"pkru": PKRU, "tilecfg": TILECFG} | {f"k{index}": OPMASK for index in range(8)}
"""Registers that are stored only where the program may use their component."""

PLACED = ((16 + 8 * 4, 8), (16 + 8 * 7, 8))
"""Offset and size of rsp and rdi, which say where the host put things."""
IGNORED = (*PLACED, (_X87 + 2, 2), (_X87 + 6, 2), (_X87 + 10, 18))
"""Those, and the padding of the FNSAVE image and its pointers, of which it has half."""


def arguments(features: int) -> range:
    """Return the arguments with which probes look at everything in ``features``."""
    return range(_FIRST_TILE + TILES if features & TILEDATA else 2)


def parse_probe(result: bytes, features: int) -> dict[str, int]:
    """Name to value of every register that a probe stored.

    ``features`` is the mask the probe ran with. One probe gives vector registers 0 to 15, with argument 1 registers
    16 to 31, with arguments 2 to 9 one tile, of 1024 bytes whatever its shape. ``ftw`` is the full tag word. Raises
    ProgramError when the result has the wrong size.
    """
    if len(result) != SIZE:
        raise ProgramError("probe", f"the result has {len(result)} bytes instead of {SIZE}")
    registers = {
        name: int.from_bytes(result[offset : offset + size], "little")
        for name, offset, size in FIELDS[1:]
        if not name.startswith("vector ") and not _OPTIONAL.get(name, 0) & ~features
    }
    for name, offset, size in _chosen(result[0], features):
        registers[name] = int.from_bytes(result[offset : offset + size], "little")
    return registers


def _chosen(argument: int, features: int) -> list[tuple[str, int, int]]:
    """Return name, offset and size of the registers that were chosen."""
    if argument >= _FIRST_TILE:
        return [(f"tmm{argument - _FIRST_TILE}", _CHOSEN, _TILE_SIZE)]
    kind, width, count = vector_kind(features)
    return [
        (f"{kind}{index}", _CHOSEN + ROW * (index % 16), width)
        for index in range(16 * argument, min(16 * argument + 16, count))
    ]


def _choice(argument: int, features: int) -> int:
    return argument if argument in arguments(features) else argument & 1


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes of a fresh context, with 0 for rsp and rdi, which depend on the host."""
    result = bytearray(SIZE)
    struct.pack_into("<QQ", result, 0, _choice(argument, features), ENTRY_RFLAGS)
    struct.pack_into("<I", result, 152, 0x1F80)
    struct.pack_into("<7I", result, _X87, 0xFFFF037F, 0xFFFF0000, 0xFFFFFFFF, 0, 0, 0, 0xFFFF0000)
    if features & PKRU:
        struct.pack_into("<I", result, _PKRU, ENTRY_PKRU)
    return bytes(result)


def explain(result: bytes, seed: int, argument: int, features: int) -> str | None:
    """Which tile is not fresh, where one was looked at; None for what the fields say."""
    choice = _choice(argument, features)
    if choice < _FIRST_TILE or len(result) != SIZE:
        return None
    row = next((row for row in range(0, _TILE_SIZE, ROW) if any(result[_CHOSEN + row :][:ROW])), None)
    if row is None:
        return None
    found = int.from_bytes(result[_CHOSEN + row :][:ROW], "little")
    return f"tmm{choice - _FIRST_TILE} row {row // ROW} is {found:#x} instead of 0x0"
