"""Rounding an exact number to a binary significand of given width, in each of the four IEEE 754 modes."""

from __future__ import annotations

from fractions import Fraction

from fpstate.image.control import Rounding


def scaled(
    magnitude: Fraction, width: int, min_scale: int, mode: Rounding, negative: bool
) -> tuple[int, int, bool]:
    """Return (significand, scale, exact) so that ``significand * 2**scale`` is ``magnitude`` rounded.

    The significand has ``width`` bits, or fewer where ``scale`` would fall under ``min_scale``: a denormal.
    ``magnitude`` is not negative; ``negative`` says on which side of zero it stands, for the directed modes.
    """
    numerator, denominator = magnitude.numerator, magnitude.denominator
    if not numerator:
        return 0, min_scale, True
    scale = max(numerator.bit_length() - denominator.bit_length() - width, min_scale)
    if numerator * (1 << max(-scale, 0)) >= denominator * (1 << max(scale, 0)) << width:
        scale += 1
    if scale < 0:
        numerator <<= -scale
    else:
        denominator <<= scale
    significand, remainder = divmod(numerator, denominator)
    if remainder and _rounds_up(significand, 2 * remainder, denominator, mode, negative):
        significand += 1
        if significand == 1 << width:
            significand, scale = significand >> 1, scale + 1
    return significand, scale, not remainder


def overflows_to_infinity(mode: Rounding, negative: bool) -> bool:
    """Tell whether a value above the format's range becomes an infinity, and not the largest finite value."""
    return mode is Rounding.NEAREST or mode is (Rounding.DOWN if negative else Rounding.UP)


def _rounds_up(
    significand: int, twice_remainder: int, denominator: int, mode: Rounding, negative: bool
) -> bool:
    if mode is Rounding.NEAREST:
        return twice_remainder > denominator or (twice_remainder == denominator and significand & 1 == 1)
    return mode is (Rounding.DOWN if negative else Rounding.UP)
