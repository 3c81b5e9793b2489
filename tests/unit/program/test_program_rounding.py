"""The exact arithmetic behind the expected answers agrees with IEEE hardware and with fractions."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from fpstate.program.expected import rounding
from fpstate.program.expected.rounding import DOUBLE_BITS, DOUBLE_LOWEST, Mode

doubles = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)
positive = st.floats(min_value=1e-100, max_value=1e100)


def as_fraction(number):
    return Fraction(number[0]) * Fraction(2) ** number[1]


def to_double(number):
    return as_fraction(rounding.rounded(number, DOUBLE_BITS, Mode.NEAREST, DOUBLE_LOWEST))


@given(doubles, doubles)
def test_sums_and_products_round_as_doubles_do(a, b):
    exact = rounding.from_double(a), rounding.from_double(b)
    for found, due in ((rounding.add(*exact), a + b), (rounding.multiply(*exact), a * b)):
        assume(math.isfinite(due))
        assert to_double(found) == Fraction(due)


@given(positive, positive)
def test_quotients_and_roots_round_as_doubles_do(a, b):
    exact = rounding.from_double(a), rounding.from_double(b)
    assert to_double(rounding.divide(*exact, DOUBLE_BITS)) == Fraction(a / b)
    assert to_double(rounding.square_root(exact[0], DOUBLE_BITS)) == Fraction(math.sqrt(a))


@given(doubles.filter(bool), st.sampled_from((24, 53)), st.integers(-8, 8))
def test_directed_modes_enclose_the_exact_value(value, bits, shift):
    mantissa, exponent = rounding.from_double(value)
    number = (mantissa * 3, exponent + shift)
    exact = as_fraction(number)
    below, above, cut, near = (
        as_fraction(rounding.rounded(number, bits, mode))
        for mode in (Mode.DOWN, Mode.UP, Mode.TO_ZERO, Mode.NEAREST)
    )
    assert below <= exact <= above
    assert abs(cut) <= abs(exact)
    assert cut in (below, above)
    assert near in (below, above)
    assert abs(near - exact) == min(exact - below, above - exact)


@given(doubles)
def test_bits_of_a_double_are_its_bits(value):
    assume(value != 0)
    (due,) = struct.unpack("<Q", struct.pack("<d", value))
    assert rounding.double_bits(rounding.from_double(value)) == due


def test_bits_of_the_x87_format():
    assert rounding.extended_bits((1, 0)) == 0x3FFF_8000000000000000
    assert rounding.extended_bits((-3, -1)) == 0xBFFF_C000000000000000
    assert rounding.extended_bits((0, 5)) == 0
