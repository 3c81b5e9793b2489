"""The 80-bit extended format of the x87: a value type that loses nothing.

Layout and classes of encodings: SDM Vol.1 4.2.2 and tables 4-3 and 8-3. A value is sign (bit 79), exponent
(bits 78:64, bias 16383) and significand (bits 63:0, whose top bit is the explicit integer bit).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from fpstate.errors import NumberError
from fpstate.image import rounding
from fpstate.image.control import Rounding

BIAS = 16383
EXPONENT_MAX = 0x7FFF
INTEGER_BIT = 1 << 63
QUIET_BIT = 1 << 62
FRACTION_BITS = 63
_SCALE_MIN = 1 - BIAS - FRACTION_BITS  # exponent of the last bit of a denormal
_HEX = r"0x[0-9a-f]+(?:\.[0-9a-f]*)?(?:p[-+]?\d{1,6})?"
_DECIMAL = r"\d+(?:\.\d*)?(?:e[-+]?\d{1,4})?"
_PAYLOAD = r"0x(?P<payload>[0-3]?[0-9a-f]{1,15})"
_PARTS = r"0x(?P<exponent>[0-7]?[0-9a-f]{1,3}):0x(?P<significand>[0-9a-f]{1,16})"
_NAMED = rf"(?P<kind>[a-z-]+)(?:\((?:{_PAYLOAD}|{_PARTS})\))?"
_FORM = re.compile(rf"(?P<sign>[-+]?)(?:(?P<number>{_HEX}|{_DECIMAL})|{_NAMED})")
_FORMS = "forms: 0x1.8p+1, 1.5, inf, qnan(0x0), unnormal(0x3fff:0x0000000000000001)"

_ROUNDED = "Float80.rounded gives the nearest value and says whether it is exact"


class Kind(Enum):
    """The class of an encoding; the last four are unsupported operands on every processor since the 387."""

    ZERO = "zero"
    NORMAL = "normal"
    DENORMAL = "denormal"
    PSEUDO_DENORMAL = "pseudo-denormal"
    INFINITY = "infinity"
    QNAN = "qnan"
    SNAN = "snan"
    UNNORMAL = "unnormal"
    PSEUDO_INFINITY = "pseudo-infinity"
    PSEUDO_NAN = "pseudo-nan"


FINITE = frozenset({Kind.ZERO, Kind.NORMAL, Kind.DENORMAL, Kind.PSEUDO_DENORMAL})
NAN = frozenset({Kind.QNAN, Kind.SNAN})


@dataclass(frozen=True)
class Float80:
    """One 80-bit value, made from its bits; equal values have equal bits, so +0 and -0 differ.

    Raises ``NumberError`` for bits outside 0..2**80-1.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 0 <= self.bits < 1 << 80:
            raise NumberError(f"Float80: {self.bits:#x} does not fit 80 bits")

    def __int__(self) -> int:
        return self.bits

    def __index__(self) -> int:
        return self.bits

    @property
    def sign(self) -> int:
        """0 for plus, 1 for minus."""
        return self.bits >> 79

    @property
    def exponent(self) -> int:
        """The biased exponent, 0..0x7FFF."""
        return self.bits >> 64 & EXPONENT_MAX

    @property
    def significand(self) -> int:
        """All 64 significand bits, the integer bit included."""
        return self.bits & (1 << 64) - 1

    @property
    def kind(self) -> Kind:
        """The class of this encoding."""
        integer, fraction = self.significand & INTEGER_BIT, self.significand & INTEGER_BIT - 1
        if self.exponent == 0:
            if integer:
                return Kind.PSEUDO_DENORMAL
            return Kind.DENORMAL if fraction else Kind.ZERO
        if self.exponent < EXPONENT_MAX:
            return Kind.NORMAL if integer else Kind.UNNORMAL
        if not integer:
            return Kind.PSEUDO_NAN if fraction else Kind.PSEUDO_INFINITY
        if not fraction:
            return Kind.INFINITY
        return Kind.QNAN if fraction & QUIET_BIT else Kind.SNAN

    def fraction(self) -> Fraction:
        """Return the exact value; both zeros give 0.

        Raises ``NumberError`` for infinities, NaNs and the unsupported encodings.
        """
        if self.kind not in FINITE:
            raise NumberError(f"a {self.kind.value} has no value as a fraction")
        scale = max(self.exponent, 1) - BIAS - FRACTION_BITS
        magnitude = Fraction(self.significand) * Fraction(2) ** scale
        return -magnitude if self.sign else magnitude

    @classmethod
    def of(cls, sign: int, exponent: int, significand: int) -> Float80:
        """Assemble a value from sign (0 or 1), biased exponent and 64-bit significand."""
        return cls(sign << 79 | exponent << 64 | significand)

    @classmethod
    def from_fraction(cls, value: Fraction | int) -> Float80:
        """Return the encoding of exactly this value; zero gives +0.

        Raises ``NumberError`` where the format has no such value; ``rounded`` gives the next best one.
        """
        result, exact = cls.rounded(value)
        if not exact:
            raise NumberError(f"not exact in 80 bits: the nearest value is {result}", help=_ROUNDED)
        return result

    @classmethod
    def rounded(
        cls, value: Fraction | int, mode: Rounding = Rounding.NEAREST, *, sign: int | None = None
    ) -> tuple[Float80, bool]:
        """Return ``value`` rounded to the format, and whether that was exact.

        ``sign`` settles the sign of a zero. What is too large becomes an infinity or the largest finite
        value, as ``mode`` has it (SDM Vol.1 4.9.1.4).
        """
        negative = value < 0 if sign is None else bool(sign)
        magnitude = abs(Fraction(value))
        significand, scale, exact = rounding.scaled(magnitude, 64, _SCALE_MIN, mode, negative)
        if significand < INTEGER_BIT:
            return cls.of(negative, 0, significand), exact
        exponent = scale + BIAS + FRACTION_BITS
        if exponent >= EXPONENT_MAX:
            if rounding.overflows_to_infinity(mode, negative):
                return cls.of(negative, EXPONENT_MAX, INTEGER_BIT), False
            return cls.of(negative, EXPONENT_MAX - 1, (1 << 64) - 1), False
        return cls.of(negative, exponent, significand), exact

    @classmethod
    def from_float(cls, value: float) -> Float80:
        """Return the encoding of a double, which is always exact; a NaN keeps its payload and its class."""
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        sign, exponent, fraction = bits >> 63, bits >> 52 & 0x7FF, bits & (1 << 52) - 1
        if exponent == 0x7FF:
            return cls.of(sign, EXPONENT_MAX, INTEGER_BIT | fraction << FRACTION_BITS - 52)
        return cls.rounded(Fraction(value), sign=sign)[0]

    def to_float_lossy(self) -> float:
        """Return the nearest double, ties to even; too large gives an infinity.

        A NaN keeps its class and its upper payload. Unsupported encodings give a NaN, as they do in the
        x87's own arithmetic.
        """
        kind = self.kind
        if kind in FINITE:
            try:
                magnitude = float(abs(self.fraction()))
            except OverflowError:
                magnitude = float("inf")
            return -magnitude if self.sign else magnitude
        fraction = 0 if kind is Kind.INFINITY else 1 << 51
        if kind in NAN:
            fraction = (self.significand & INTEGER_BIT - 1) >> FRACTION_BITS - 52 or 1
        (value,) = struct.unpack("<d", struct.pack("<Q", self.sign << 63 | 0x7FF << 52 | fraction))
        return float(value)

    def __str__(self) -> str:
        """Return text that ``parse`` turns back into the same bits.

        Numbers are C hexadecimal floats, ``0x1.921fb54442d1846ap+1``; NaNs state the 62 bits under the quiet
        bit, ``qnan(0x0)``; encodings that no number denotes state exponent and significand.
        """
        kind, minus = self.kind, "-" if self.sign else ""
        if kind is Kind.ZERO:
            return minus + "0x0p+0"
        if kind is Kind.INFINITY:
            return minus + "inf"
        if kind in NAN:
            return f"{minus}{kind.value}({self.significand & QUIET_BIT - 1:#x})"
        if kind not in (Kind.NORMAL, Kind.DENORMAL):
            return f"{minus}{kind.value}({self.exponent:#06x}:{self.significand:#018x})"
        digits = f"{self.significand << 1 & (1 << 64) - 1:016x}".rstrip("0")
        point = f".{digits}" if digits else ""
        return f"{minus}0x{self.significand >> 63}{point}p{max(self.exponent, 1) - BIAS:+d}"

    @classmethod
    def parse(cls, text: str) -> Float80:
        """Return the value that ``str()`` wrote, or that a hexadecimal or decimal number states exactly.

        Raises ``NumberError`` for text of no such form and for numbers that the format does not hold.
        """
        match = _FORM.fullmatch(text.strip().lower())
        if match is None:
            raise NumberError(f"{text!r} is no 80-bit value", help=_FORMS)
        sign = match["sign"] == "-"
        if match["number"]:
            return cls._from_number(match["number"], sign)
        value = cls.of(sign, *_named_encoding(match))
        if value.kind.value.removesuffix("inity") != match["kind"].removesuffix("inity"):
            if not (match["payload"] or match["exponent"]):
                raise NumberError(f"{text!r} is no 80-bit value", help=_FORMS)
            raise NumberError(f"{text!r}: these bits are a {value.kind.value}")
        return value

    @classmethod
    def _from_number(cls, text: str, sign: bool) -> Float80:
        digits, _, power = text.removeprefix("0x").partition("p")
        if text.startswith("0x"):
            whole, _, part = digits.partition(".")
            magnitude = Fraction(int(whole + part, 16)) * Fraction(2) ** (int(power or "0") - 4 * len(part))
        else:
            magnitude = Fraction(text)
        value, exact = cls.rounded(-magnitude if sign else magnitude, sign=sign)
        if not exact:
            raise NumberError(f"{text} is not exact in 80 bits: the nearest value is {value}", help=_ROUNDED)
        return value


def _named_encoding(match: re.Match[str]) -> tuple[int, int]:
    """Return exponent and significand of a text that names its class."""
    if match["payload"]:
        quiet = QUIET_BIT if match["kind"] == "qnan" else 0
        return EXPONENT_MAX, INTEGER_BIT | quiet | int(match["payload"], 16)
    if match["exponent"]:
        return int(match["exponent"], 16), int(match["significand"], 16)
    return EXPONENT_MAX, INTEGER_BIT
