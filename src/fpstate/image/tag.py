"""The x87 tag word in its two forms, and the way from one to the other.

FSAVE and debuggers use the full form, two bits per register; FXSAVE and XSAVE keep the abridged form, one
bit per register (SDM Vol.1 8.1.7 and 10.5.1). Both go by *physical* register, whereas the register slots
in memory are in stack order: ST(i) is physical register (TOP + i) & 7. The same conversions are
``twd_fxsr_to_i387`` and ``twd_i387_to_fxsr`` in Linux.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

REGISTERS = 8
_INTEGER_BIT = 1 << 63
_EXPONENT_MASK = 0x7FFF


class Tag(IntEnum):
    """What a full tag says of one physical register."""

    VALID = 0
    ZERO = 1
    SPECIAL = 2
    EMPTY = 3


def physical_register(index: int, top: int) -> int:
    """Return the physical register that ST(``index``) names while FSW.TOP is ``top``."""
    return (top + index) & 7


def slot_of(physical: int, top: int) -> int:
    """Return the stack-order slot that holds a physical register while FSW.TOP is ``top``."""
    return (physical - top) & 7


def content_tag(bits: int) -> Tag:
    """Classify an 80-bit value as the full tag word does; never ``Tag.EMPTY``."""
    exponent = bits >> 64 & _EXPONENT_MASK
    significand = bits & (1 << 64) - 1
    if exponent == 0:
        return Tag.SPECIAL if significand else Tag.ZERO
    if exponent == _EXPONENT_MASK or not significand & _INTEGER_BIT:
        return Tag.SPECIAL
    return Tag.VALID


def full_tag(abridged: int, top: int, slots: Sequence[int]) -> int:
    """Return the 16-bit tag word for an abridged byte.

    ``slots`` are the eight 80-bit values in stack order, ``top`` is FSW.TOP. An empty x87 is 0 in the
    abridged form and 0xFFFF in this one.
    """
    full = 0
    for physical in range(REGISTERS):
        held = abridged >> physical & 1
        tag = content_tag(slots[slot_of(physical, top)]) if held else Tag.EMPTY
        full |= tag << 2 * physical
    return full


def abridged_tag(full: int) -> int:
    """Return the 8-bit abridged form of a full tag word: a bit is set where the register is not empty."""
    return sum(1 << physical for physical in range(REGISTERS) if full >> 2 * physical & 3 != Tag.EMPTY)
