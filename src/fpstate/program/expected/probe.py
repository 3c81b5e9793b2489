"""The answer of ``probe``: a fresh context holds nothing but its initial configuration."""

from __future__ import annotations

import struct

from fpstate.errors import ProgramError
from fpstate.program.block import ENTRY_RFLAGS, OPMASK, ZMM_HI256
from fpstate.program.expected.canary import vector_kind

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
SIZE = 384 + 16 * 64
_VECTOR = 384
_X87 = 160
_OPMASK = 272
_ST0 = _X87 + 28

FIELDS = (
    ("half", 0, 8),
    ("rflags", 8, 8),
    *((name, 16 + 8 * index, 8) for index, name in enumerate(GENERAL)),
    ("return slot", 144, 8),
    ("mxcsr", 152, 4),
    ("fcw", _X87, 2),
    ("fsw", _X87 + 4, 2),
    ("ftw", _X87 + 8, 2),
    *((f"st{index}", _ST0 + 10 * index, 10) for index in range(8)),
    *((f"k{index}", _OPMASK + 8 * index, 8) for index in range(8)),
    *((f"vector {index}", _VECTOR + 64 * index, 64) for index in range(16)),
)

PLACED = ((16 + 8 * 4, 8), (16 + 8 * 7, 8))
"""Offset and size of rsp and rdi, which say where the host put things."""
IGNORED = (*PLACED, (_X87 + 2, 2), (_X87 + 6, 2), (_X87 + 10, 18))
"""Those, and the padding and the pointers of the FNSAVE image."""


def parse_probe(result: bytes, features: int) -> dict[str, int]:
    """Name to value of every register that a probe stored.

    ``features`` is the mask the probe ran with. One probe gives vector registers 0 to 15, or with
    argument 1 registers 16 to 31. ``ftw`` is the full tag word. Raises ProgramError when the
    result has the wrong size.
    """
    if len(result) != SIZE:
        raise ProgramError("probe", f"the result has {len(result)} bytes instead of {SIZE}")
    kind, width, _ = vector_kind(features)
    upper = result[0] & 1
    registers = {}
    for name, offset, size in FIELDS[1:]:
        value = int.from_bytes(result[offset : offset + size], "little")
        if name.startswith("vector "):
            if upper and not features & ZMM_HI256:
                continue
            value = int.from_bytes(result[offset : offset + width], "little")
            registers[f"{kind}{int(name[7:]) + 16 * upper}"] = value
        elif not name.startswith("k") or features & OPMASK:
            registers[name] = value
    return registers


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes of a fresh context, with 0 for rsp and rdi, which depend on the host."""
    result = bytearray(SIZE)
    struct.pack_into("<QQ", result, 0, argument & 1, ENTRY_RFLAGS)
    struct.pack_into("<I", result, 152, 0x1F80)
    struct.pack_into("<7I", result, _X87, 0xFFFF037F, 0xFFFF0000, 0xFFFFFFFF, 0, 0, 0, 0xFFFF0000)
    return bytes(result)
