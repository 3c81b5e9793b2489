"""The answer of ``rounding_sum``: the same sums under every rounding control, exactly rounded."""

from __future__ import annotations

import struct
from functools import lru_cache

from fpstate.program.expected.rounding import (
    DOUBLE_BITS,
    DOUBLE_LOWEST,
    EXTENDED_BITS,
    SINGLE_BITS,
    Mode,
    Number,
    add,
    double_bits,
    extended_bits,
    from_double,
    multiply,
    rounded,
)
from fpstate.program.expected.splitmix import MASK, stream

TERMS = 32
ROTATION = 9
SIGN = 1 << 63
SMALLEST_NORMAL: Number = (1, -1022)
SIXTEEN_SMALLEST: Number = (1, -1018)
FACTOR = from_double(0.7)
PRECISIONS = ((0, SINGLE_BITS), (2, DOUBLE_BITS), (3, EXTENDED_BITS))
"""FCW.PC and the bits of significand it stands for (SDM Vol. 1, table 8-2)."""


def _names() -> list[str]:
    sse = [f"SSE RC={mode} {name}" for mode in range(4) for name in ("-", "DAZ", "FTZ", "FTZ DAZ")]
    x87 = [f"x87 RC={mode} PC={bits}" for mode in range(4) for _, bits in PRECISIONS]
    return sse + x87


FIELDS = (
    *(
        field
        for index, name in enumerate(_names())
        for field in ((f"fold {name}", 24 * index, 16), (f"control {name}", 24 * index + 16, 8))
    ),
    ("passes", 24 * 28, 8),
)


@lru_cache(maxsize=64)
def terms(seed: int) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """The seed's normal and subnormal terms."""
    words = stream(seed)
    normal: list[Number] = []
    subnormal: list[Number] = []
    fraction = (1 << 52) - 1
    for _ in range(TERMS):
        word = next(words)
        mantissa = (word & fraction) | (1 << 52)
        normal.append((-mantissa if word & SIGN else mantissa, 991 + (word >> 59) - 1075))
        word = next(words)
        mantissa = word & fraction
        subnormal.append((-mantissa if word & SIGN else mantissa, DOUBLE_LOWEST))
    return tuple(normal), tuple(subnormal)


@lru_cache(maxsize=512)
def sse_pass(seed: int, mode: Mode, flush: bool, zeros: bool) -> tuple[int, int, int]:
    """The bits of s and t, and the integer u, after one pass."""
    s: Number = (0, 0)
    t = SIXTEEN_SMALLEST
    u = 0
    for a, d in zip(*terms(seed), strict=True):
        s = rounded(add(s, a), DOUBLE_BITS, mode, DOUBLE_LOWEST)
        if not zeros:
            t = rounded(add(t, d), DOUBLE_BITS, mode, DOUBLE_LOWEST)
        product = rounded(multiply(a, SMALLEST_NORMAL), DOUBLE_BITS, mode, DOUBLE_LOWEST)
        if flush:
            u += SIGN if a[0] < 0 else 0
        else:
            u += double_bits(product)
    return double_bits(s), double_bits(t), u & MASK


@lru_cache(maxsize=512)
def x87_pass(seed: int, mode: Mode, bits: int) -> tuple[int, int]:
    """The 80 bits of s and t after one pass."""
    s: Number = (0, 0)
    t: Number = (0, 0)
    for a in terms(seed)[0]:
        s = rounded(add(s, a), bits, mode)
        t = rounded(add(rounded(multiply(t, FACTOR), bits, mode), a), bits, mode)
    return extended_bits(s), extended_bits(t)


def _fold(words: tuple[int, ...], passes: int) -> int:
    fold = 0
    for _ in range(passes):
        for word in words:
            fold = (((fold << ROTATION) | (fold >> (64 - ROTATION))) + word) & MASK
    return fold


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    entries = []
    for mode in Mode:
        for flush in (False, True):
            for zeros in (False, True):
                s, t, u = sse_pass(seed, mode, flush, zeros)
                mxcsr = 0x1F80 | flush << 15 | mode << 13 | zeros << 6
                entries.append((_fold((s, u), argument), _fold((t, u), argument), mxcsr))
    for mode in Mode:
        for coded, bits in PRECISIONS:
            folds = [_fold((value & MASK, value >> 64), argument) for value in x87_pass(seed, mode, bits)]
            entries.append((folds[0], folds[1], 0x7F | mode << 10 | coded << 8))
    return b"".join(struct.pack("<3Q", *entry) for entry in entries) + struct.pack("<Q", argument)
