"""Exact binary arithmetic with one rounding at the end, in integers.

A number is ``(mantissa, exponent)``, worth ``mantissa * 2**exponent``; the mantissa carries the
sign. Signed zeros, infinities and NaNs are left out: the programs here do not meet them.
"""

from __future__ import annotations

import enum
import math
import struct

Number = tuple[int, int]

SINGLE_BITS = 24
DOUBLE_BITS = 53
EXTENDED_BITS = 64
DOUBLE_LOWEST = -1074
"""The exponent of the least subnormal double."""


class Mode(enum.IntEnum):
    """Rounding control, coded as in FCW.RC and MXCSR.RC (SDM Vol. 1, table 4-8)."""

    NEAREST = 0
    DOWN = 1
    UP = 2
    TO_ZERO = 3


def rounded(number: Number, bits: int, mode: Mode = Mode.NEAREST, lowest: int | None = None) -> Number:
    """``number`` to ``bits`` of significand, with no bit below exponent ``lowest``."""
    mantissa, exponent = number
    magnitude = abs(mantissa)
    drop = magnitude.bit_length() - bits
    if lowest is not None and lowest - exponent > drop:
        drop = lowest - exponent
    if drop <= 0:
        return number
    kept = magnitude >> drop
    rest = magnitude - (kept << drop)
    if mode is Mode.NEAREST:
        half = 1 << (drop - 1)
        up = rest > half or (rest == half and kept & 1 == 1)
    elif mode is Mode.TO_ZERO:
        up = False
    else:
        up = rest != 0 and (mantissa > 0) == (mode is Mode.UP)
    kept += up
    return (kept if mantissa > 0 else -kept), exponent + drop


def add(a: Number, b: Number) -> Number:
    """The exact sum."""
    if a[1] >= b[1]:
        return (a[0] << (a[1] - b[1])) + b[0], b[1]
    return a[0] + (b[0] << (b[1] - a[1])), a[1]


def subtract(a: Number, b: Number) -> Number:
    """The exact difference."""
    return add(a, (-b[0], b[1]))


def multiply(a: Number, b: Number) -> Number:
    """The exact product."""
    return a[0] * b[0], a[1] + b[1]


def divide(a: Number, b: Number, bits: int) -> Number:
    """A quotient of positive numbers that rounds to ``bits`` as the exact one does."""
    shift = bits + 2 + b[0].bit_length()
    quotient, rest = divmod(a[0] << shift, b[0])
    return (quotient << 1) | (rest != 0), a[1] - b[1] - shift - 1


def square_root(a: Number, bits: int) -> Number:
    """A root of a positive number that rounds to ``bits`` as the exact one does."""
    shift = 2 * (bits + 2)
    shift += (a[1] - shift) & 1
    square = a[0] << shift
    root = math.isqrt(square)
    return (root << 1) | (root * root != square), (a[1] - shift) // 2 - 1


def from_double(value: float) -> Number:
    """A finite double, exactly."""
    numerator, denominator = value.as_integer_ratio()
    return numerator, 1 - denominator.bit_length()


def double_bits(number: Number) -> int:
    """The 64 bits of a number that is a double already."""
    mantissa, exponent = number
    if int(float(mantissa)) != mantissa:
        raise ValueError(f"{mantissa} has more bits than a double")
    (bits,) = struct.unpack("<Q", struct.pack("<d", math.ldexp(mantissa, exponent)))
    return int(bits)


def extended_bits(number: Number) -> int:
    """The 80 bits of a number that has at most 64 significant bits (SDM Vol. 1, 4.2.2)."""
    mantissa, exponent = number
    if mantissa == 0:
        return 0
    magnitude = abs(mantissa)
    shift = EXTENDED_BITS - magnitude.bit_length()
    significand = magnitude << shift if shift >= 0 else magnitude >> -shift
    biased = exponent - shift + EXTENDED_BITS - 1 + 16383
    return (int(mantissa < 0) << 79) | (biased << 64) | significand
