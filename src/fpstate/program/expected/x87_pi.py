"""The answer of ``x87_pi``: Gauss and Legendre's pi, every operation rounded to 64 bits."""

from __future__ import annotations

import struct
from functools import lru_cache

from fpstate.program.expected.rounding import (
    EXTENDED_BITS,
    Number,
    add,
    divide,
    extended_bits,
    multiply,
    rounded,
    square_root,
    subtract,
)
from fpstate.program.expected.splitmix import nth

FIELDS = (("last pi", 0, 16), ("alternating sum", 16, 16), ("sum", 32, 16), ("rounds", 48, 8))

SCALES = 16
ITERATIONS = 6
ULPS = 8
"""The rounding errors of the method stay below this, in units of 2**-62."""

HALF: Number = (1, -1)
QUARTER: Number = (1, -2)


def _round(number: Number) -> Number:
    return rounded(number, EXTENDED_BITS)


def pi(scale: int) -> Number:
    """Pi as the x87 unit finds it when it starts from the integer ``scale``."""
    a: Number = (scale, 0)
    square = _round(multiply(a, a))
    b = _round(square_root(_round(multiply(square, HALF)), EXTENDED_BITS))
    t = _round(multiply(square, QUARTER))
    p: Number = (1, 0)
    for _ in range(ITERATIONS):
        mean = _round(multiply(_round(add(a, b)), HALF))
        change = _round(subtract(a, mean))
        t = _round(subtract(t, _round(multiply(_round(multiply(change, change)), p))))
        b = _round(square_root(_round(multiply(a, b)), EXTENDED_BITS))
        a = mean
        p = _round(add(p, p))
    total = _round(add(a, b))
    return _round(divide(_round(multiply(total, total)), multiply(t, (4, 0)), EXTENDED_BITS))


@lru_cache(maxsize=256)
def scaled_pi(seed: int, index: int) -> Number:
    """Pi of the seed's scale ``index``, of 16."""
    return pi((nth(seed, index) >> 1) | 1 << 62)


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    values = [scaled_pi(seed, index) for index in range(min(SCALES, argument))]
    total: Number = (0, 0)
    alternating: Number = (0, 0)
    last: Number = (0, 0)
    for index in range(argument):
        last = values[index % SCALES]
        total = _round(add(total, last))
        alternating = _round(subtract(last, alternating))
    extended = b"".join(extended_bits(number).to_bytes(16, "little") for number in (last, alternating, total))
    return extended + struct.pack("<Q", argument)
