"""80-bit values: classes, exact numbers, lossless text."""

import math
import struct
from fractions import Fraction

import pytest

from fpstate.errors import NumberError
from fpstate.image import Float80, Kind, Rounding

PI = 0x4000_C90FDAA22168C235
INTEGER = 1 << 63

CLASSES = [
    (0, Kind.ZERO, "0x0p+0"),
    (1 << 79, Kind.ZERO, "-0x0p+0"),
    (1, Kind.DENORMAL, "0x0.0000000000000002p-16382"),
    (INTEGER, Kind.PSEUDO_DENORMAL, "pseudo-denormal(0x0000:0x8000000000000000)"),
    (1 << 64 | INTEGER, Kind.NORMAL, "0x1p-16382"),
    (PI, Kind.NORMAL, "0x1.921fb54442d1846ap+1"),
    (1 << 79 | PI, Kind.NORMAL, "-0x1.921fb54442d1846ap+1"),
    (0x3FFF << 64 | 1, Kind.UNNORMAL, "unnormal(0x3fff:0x0000000000000001)"),
    (0x3FFF << 64, Kind.UNNORMAL, "unnormal(0x3fff:0x0000000000000000)"),
    (0x7FFF << 64 | INTEGER, Kind.INFINITY, "inf"),
    (0xFFFF << 64 | INTEGER, Kind.INFINITY, "-inf"),
    (0x7FFF << 64 | 3 << 62, Kind.QNAN, "qnan(0x0)"),
    (0xFFFF << 64 | 3 << 62 | 5, Kind.QNAN, "-qnan(0x5)"),
    (0x7FFF << 64 | INTEGER | 7, Kind.SNAN, "snan(0x7)"),
    (0x7FFF << 64, Kind.PSEUDO_INFINITY, "pseudo-infinity(0x7fff:0x0000000000000000)"),
    (0x7FFF << 64 | 1, Kind.PSEUDO_NAN, "pseudo-nan(0x7fff:0x0000000000000001)"),
]


@pytest.mark.parametrize(("bits", "kind", "text"), CLASSES)
def test_each_encoding_has_one_class_and_one_text(bits: int, kind: Kind, text: str) -> None:
    value = Float80(bits)
    assert value.kind is kind
    assert str(value) == text
    assert Float80.parse(text) == value


def test_sign_exponent_and_significand_are_the_fields() -> None:
    value = Float80(1 << 79 | PI)
    assert (value.sign, value.exponent, value.significand) == (1, 0x4000, 0xC90FDAA22168C235)
    assert int(value) == 1 << 79 | PI


def test_a_pseudo_denormal_is_worth_the_smallest_normals() -> None:
    assert Float80(INTEGER).fraction() == Float80(1 << 64 | INTEGER).fraction() == Fraction(1, 2**16382)


@pytest.mark.parametrize("kind", set(Kind) - {Kind.ZERO, Kind.NORMAL, Kind.DENORMAL, Kind.PSEUDO_DENORMAL})
def test_what_is_no_number_has_no_fraction(kind: Kind) -> None:
    bits = next(bits for bits, each, _ in CLASSES if each is kind)
    with pytest.raises(NumberError, match=kind.value):
        Float80(bits).fraction()


def test_only_what_the_format_holds_is_converted_silently() -> None:
    assert Float80.from_fraction(Fraction(1, 2)) == Float80(0x3FFE << 64 | INTEGER)
    assert Float80.from_fraction(-(2**64) + 1).fraction() == -(2**64) + 1
    for value in (Fraction(1, 3), 2**64 + 1, 2**16384, Fraction(1, 2**16446)):
        with pytest.raises(NumberError):
            Float80.from_fraction(value)


@pytest.mark.parametrize(
    ("mode", "third", "minus_third"),
    [
        (Rounding.NEAREST, 0xAAAAAAAAAAAAAAAB, 0xAAAAAAAAAAAAAAAB),
        (Rounding.DOWN, 0xAAAAAAAAAAAAAAAA, 0xAAAAAAAAAAAAAAAB),
        (Rounding.UP, 0xAAAAAAAAAAAAAAAB, 0xAAAAAAAAAAAAAAAA),
        (Rounding.ZERO, 0xAAAAAAAAAAAAAAAA, 0xAAAAAAAAAAAAAAAA),
    ],
)
def test_rounding_goes_the_way_it_is_told(mode: Rounding, third: int, minus_third: int) -> None:
    assert Float80.rounded(Fraction(1, 3), mode) == (Float80.of(0, 0x3FFD, third), False)
    assert Float80.rounded(Fraction(-1, 3), mode) == (Float80.of(1, 0x3FFD, minus_third), False)


def test_ties_go_to_even() -> None:
    assert Float80.rounded(2**64 + 1)[0].fraction() == 2**64
    assert Float80.rounded(2**64 + 3)[0].fraction() == 2**64 + 4
    assert Float80.rounded(Fraction(2**65 - 1, 2))[0].fraction() == 2**64


def test_overflow_is_an_infinity_or_the_largest_value_by_mode() -> None:
    huge, largest = 2**16384, Float80.of(0, 0x7FFE, (1 << 64) - 1)
    assert Float80.rounded(huge)[0].kind is Kind.INFINITY
    assert Float80.rounded(huge, Rounding.UP)[0].kind is Kind.INFINITY
    assert Float80.rounded(huge, Rounding.DOWN) == (largest, False)
    assert Float80.rounded(huge, Rounding.ZERO) == (largest, False)
    assert Float80.rounded(-huge, Rounding.DOWN)[0] == Float80.parse("-inf")


def test_doubles_convert_exactly_and_back() -> None:
    for value in (0.0, -0.0, 1.5, -(2.0**-1074), math.pi, float("inf"), 1.7976931348623157e308):
        assert struct.pack("<d", Float80.from_float(value).to_float_lossy()) == struct.pack("<d", value)
    (signalling,) = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000123))
    assert Float80.from_float(signalling).kind is Kind.SNAN
    assert struct.pack("<d", Float80.from_float(signalling).to_float_lossy()) == struct.pack("<d", signalling)


def test_conversion_to_a_double_rounds_and_overflows() -> None:
    assert Float80(PI).to_float_lossy() == math.pi
    assert Float80.from_fraction(2**1024).to_float_lossy() == math.inf
    assert math.isnan(Float80(0x3FFF << 64).to_float_lossy())
    assert math.isnan(Float80.parse("snan(0x1)").to_float_lossy())


@pytest.mark.parametrize("text", ["1.5", "0x1.8p+0", "0x3p-1", "+1.5", " 0x1.80 ", "15e-1"])
def test_numbers_are_read_in_several_spellings(text: str) -> None:
    assert Float80.parse(text) == Float80(0x3FFF << 64 | 3 << 62)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "0x", "pi", "nan", "qnan", "zero", "0.1", "1e9999", "0x1p99999", "snan(0x0)"),
        *("normal(0x8000:0x0)", "unnormal(0x3fff:0x8000000000000000)", "qnan(0x4000000000000000)"),
    ],
)
def test_text_that_states_no_80_bit_value_is_refused(text: str) -> None:
    with pytest.raises(NumberError):
        Float80.parse(text)


@pytest.mark.parametrize("bits", [-1, 1 << 80])
def test_bits_must_fit(bits: int) -> None:
    with pytest.raises(NumberError):
        Float80(bits)
