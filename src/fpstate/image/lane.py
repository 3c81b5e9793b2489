"""Lanes: a register's bits as a row of equal numbers, integers or binary floating point.

Reading and writing back any bits leaves them as they were, signalling NaNs and payloads included. Formats are
those of IEEE 754-2019 3.6 (binary16, 32, 64); bf16 is the upper half of a binary32 (Intel, BFLOAT16 Hardware
Numerics Definition).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from fpstate.errors import NumberError
from fpstate.image import rounding
from fpstate.image.control import Rounding

_DOUBLE_FRACTION = 52
_DOUBLE_EXPONENT_MAX = 0x7FF


@dataclass(frozen=True)
class IntegerLane:
    """Integers of ``size`` bytes."""

    size: int
    signed: bool

    def decode(self, bits: int) -> int:
        """Return the number that ``bits`` stand for."""
        return bits - (bits >> 8 * self.size - 1 << 8 * self.size) if self.signed else bits

    def encode(self, value: float) -> int:
        """Return the bits of a number; raises NumberError where it is no integer or does not fit."""
        low = -(1 << 8 * self.size - 1) if self.signed else 0
        high = low + (1 << 8 * self.size) - 1
        if not isinstance(value, int) or not low <= value <= high:
            raise NumberError(f"{value!r} is no integer in {low}..{high}")
        return value & (1 << 8 * self.size) - 1


@dataclass(frozen=True)
class FloatLane:
    """Binary floating point of ``size`` bytes, ``fraction`` of whose bits follow the binary point."""

    size: int
    fraction: int

    @property
    def _exponent_max(self) -> int:
        return (1 << 8 * self.size - 1 - self.fraction) - 1

    @property
    def _min_scale(self) -> int:
        """The power of two that the last bit of a denormal is worth."""
        return 1 - (self._exponent_max >> 1) - self.fraction

    def decode(self, bits: int) -> float:
        """Return the number that ``bits`` stand for; a NaN's payload becomes the upper bits of a double's."""
        sign = bits >> 8 * self.size - 1
        exponent = bits >> self.fraction & self._exponent_max
        fraction = bits & (1 << self.fraction) - 1
        if exponent == self._exponent_max:
            shifted = fraction << _DOUBLE_FRACTION - self.fraction
            return _double(sign << 63 | _DOUBLE_EXPONENT_MAX << _DOUBLE_FRACTION | shifted)
        significand = fraction | (1 << self.fraction if exponent else 0)
        value = math.ldexp(significand, self._min_scale + max(exponent, 1) - 1)
        return -value if sign else value

    def encode(self, value: float) -> int:
        """Return the bits of a number rounded to nearest, ties to even; too large gives an infinity.

        A NaN keeps as much of its payload as fits, and stays a NaN. An integer too large for a double counts
        as what it is.
        """
        sign = math.copysign(1, value) < 0 if isinstance(value, float) else value < 0
        sign_bit = sign << 8 * self.size - 1
        infinity = self._exponent_max << self.fraction
        if isinstance(value, float) and not math.isfinite(value):
            payload = _bits(value) & (1 << _DOUBLE_FRACTION) - 1
            fraction = payload >> _DOUBLE_FRACTION - self.fraction
            return sign_bit | infinity | (fraction or (1 if payload else 0))
        significand, scale, _ = rounding.scaled(
            abs(Fraction(value)), self.fraction + 1, self._min_scale, Rounding.NEAREST, sign
        )
        # An exponent field of 0 and one of 1 share a scale; the hidden bit carries from one to the other.
        return sign_bit | min((scale - self._min_scale << self.fraction) + significand, infinity)


Lane = IntegerLane | FloatLane

LANES: Final[Mapping[str, Lane]] = MappingProxyType(
    {
        **{f"i{8 * size}": IntegerLane(size, signed=True) for size in (1, 2, 4, 8)},
        **{f"u{8 * size}": IntegerLane(size, signed=False) for size in (1, 2, 4, 8)},
        "f16": FloatLane(2, 10),
        "bf16": FloatLane(2, 7),
        "f32": FloatLane(4, 23),
        "f64": FloatLane(8, 52),
    }
)
"""Lane types by name."""


def split(bits: int, size: int, lane_type: str) -> tuple[int | float, ...]:
    """Return the lanes of a register of ``size`` bytes, lowest first.

    Raises NumberError for an unknown type and where the lanes do not fill the register.
    """
    lane = _lane(lane_type, size)
    width = 8 * lane.size
    return tuple(lane.decode(bits >> shift & (1 << width) - 1) for shift in range(0, 8 * size, width))


def join(values: Sequence[int | float], size: int, lane_type: str) -> int:
    """Return the bits of a register of ``size`` bytes made of these lanes, lowest first.

    Raises NumberError as ``split`` does, for a wrong number of lanes and for integers that do not fit theirs.
    """
    lane = _lane(lane_type, size)
    if len(values) != size // lane.size:
        raise NumberError(f"{len(values)} lanes of {lane_type}, the register has {size // lane.size}")
    return sum(lane.encode(value) << 8 * lane.size * index for index, value in enumerate(values))


def _lane(name: str, size: int) -> Lane:
    lane = LANES.get(name)
    if lane is None:
        raise NumberError(f"no lane type {name!r}", help="types: " + ", ".join(LANES))
    if size % lane.size:
        raise NumberError(f"{size} bytes are no whole number of {name} lanes")
    return lane


def _double(bits: int) -> float:
    (value,) = struct.unpack("<d", bits.to_bytes(8, "little"))
    return float(value)


def _bits(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")
