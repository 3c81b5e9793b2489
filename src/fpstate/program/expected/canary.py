"""The answer of ``canary``, and the pattern it keeps in every register."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import islice

from fpstate.program.block import AVX, KNOWN_FEATURES, OPMASK, ZMM_HI256
from fpstate.program.expected.splitmix import stream

GENERAL = ("rbx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
CONTROL = ("fcw", "fsw", "ftw", "mxcsr")
STACK = tuple(f"st{index}" for index in range(8))
OPMASKS = tuple(f"k{index}" for index in range(8))
VECTORS = 32
SLOTS = (*GENERAL, *CONTROL, *STACK, *OPMASKS)
"""Names of the slots below ``FIRST_VECTOR``; the vector registers follow."""
FIRST_VECTOR = len(SLOTS)

FIELDS = (
    ("iterations", 0, 8),
    ("mismatches", 8, 8),
    ("first mismatching register", 16, 8),
    ("its iteration", 24, 8),
    ("what it held", 64, 64),
)
NONE = (1 << 64) - 1

_RESULT = struct.Struct("<4Q32x64s")
_WORDS = 10 + 1 + 2 * 8 + 8 + 8 * VECTORS


def vector_kind(features: int) -> tuple[str, int, int]:
    """Name, size in bytes and number of the widest vector registers in ``features``."""
    if features & ZMM_HI256:
        return "zmm", 64, 32
    if features & AVX:
        return "ymm", 32, 16
    return "xmm", 16, 16


@lru_cache(maxsize=64)
def _pattern(seed: int, features: int) -> dict[str, int]:
    words = iter(list(islice(stream(seed), _WORDS)))
    registers = {name: next(words) for name in GENERAL}
    control = next(words)
    registers["fcw"] = 0x027F | (control & 0x0D00)
    registers["fsw"] = (control >> 16) & 0x7F3F
    registers["ftw"] = 0xFF
    registers["mxcsr"] = 0x1F80 | ((control >> 32) & 0xE07F)
    for name in STACK:
        significand = next(words) | 1 << 63
        registers[name] = ((next(words) & 0xBFFF) | 1) << 64 | significand
    opmasks = {name: next(words) for name in OPMASKS}
    if features & OPMASK:
        registers |= opmasks
    kind, size, count = vector_kind(features)
    for index in range(count):
        vector = struct.pack("<8Q", *islice(words, 8))
        registers[f"{kind}{index}"] = int.from_bytes(vector[:size], "little")
    return registers


def canary_pattern(seed: int, features: int = KNOWN_FEATURES) -> dict[str, int]:
    """What the canary keeps in each register: name to value, for the registers in ``features``.

    ``ftw`` is the abridged tag byte of FXSAVE; ``st`` values have 80 bits; the widest name of
    each vector register is given.
    """
    return dict(_pattern(seed, features))


def slot_name(slot: int, features: int = KNOWN_FEATURES) -> str:
    """The register of a slot number in the result."""
    if slot < FIRST_VECTOR:
        return SLOTS[slot]
    return f"{vector_kind(features)[0]}{slot - FIRST_VECTOR}"


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes of a run in which no register was lost."""
    return _RESULT.pack(argument, 0, NONE, NONE, bytes(64))


def explain(result: bytes, seed: int, argument: int, features: int) -> str | None:
    """Which register was lost first, and when; None when the result does not say."""
    if len(result) != _RESULT.size:
        return None
    _, mismatches, slot, iteration, found = _RESULT.unpack(result)
    if slot >= FIRST_VECTOR + VECTORS:
        return None
    name = slot_name(slot, features)
    expected = canary_pattern(seed, features).get(name)
    if expected is None:
        return None
    return (
        f"{mismatches} mismatches, the first in {name} at iteration {iteration}: "
        f"holds {int.from_bytes(found, 'little'):#x} instead of {expected:#x}"
    )
