"""MXCSR, the x87 control word and the x87 status word as values with named fields.

Bit positions: SDM Vol.1 8.1.3 (status word), 8.1.5 (control word), 10.2.3 (MXCSR). Bit 17 of MXCSR, the
misaligned-exception mask, exists on AMD alone (APM Vol.1 4.2.2).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from fpstate.image.bitfield import BitField, BitRegister

MXCSR_INIT = 0x1F80
FCW_INIT = 0x037F
_FCW_SET = 0x0040
_FCW_CLEAR = 0xE080


class Rounding(IntEnum):
    """Rounding control as MXCSR[14:13] and FCW[11:10] encode it."""

    NEAREST = 0
    DOWN = 1
    UP = 2
    ZERO = 3


class Precision(IntEnum):
    """x87 precision control, FCW[9:8]: the significand's width in bits is 24, (reserved), 53 or 64."""

    SINGLE = 0
    RESERVED = 1
    DOUBLE = 2
    EXTENDED = 3


class FpException(IntFlag):
    """The six floating-point exceptions, in the bit order that flags and masks share."""

    INVALID = 0x01
    DENORMAL = 0x02
    ZERO_DIVIDE = 0x04
    OVERFLOW = 0x08
    UNDERFLOW = 0x10
    PRECISION = 0x20

    def letters(self) -> str:
        """The set exceptions by the manuals' letters, ``"IDZOUP"`` being all of them."""
        return "".join(letter for bit, letter in enumerate("IDZOUP") if self & 1 << bit)


def _described(bits: int, digits: int, **parts: str) -> str:
    """``0x1f80 masks=IDZOUP rounding=nearest``: hexadecimal bits, then the parts that are not empty."""
    return " ".join([f"{bits:#0{digits + 2}x}", *(f"{name}={text}" for name, text in parts.items() if text)])


class Mxcsr(BitRegister):
    """MXCSR: control and status of SSE and later vector arithmetic; 32 bits, 0x1F80 initially."""

    WIDTH = 32

    exceptions = BitField(0, 6, FpException)
    daz = BitField(6, 1, bool)
    masks = BitField(7, 6, FpException)
    rounding = BitField(13, 2, Rounding)
    ftz = BitField(15, 1, bool)
    misaligned_mask = BitField(17, 1, bool)

    def __str__(self) -> str:
        return _described(
            self.bits,
            8,
            exceptions=self.exceptions.letters(),
            masks=self.masks.letters(),
            rounding=self.rounding.name.lower(),
            flags="+".join(self._raised("daz", "ftz", "misaligned_mask")),
        )


class ControlWord(BitRegister):
    """FCW, the x87 control word; 16 bits, 0x037F initially."""

    masks = BitField(0, 6, FpException)
    precision = BitField(8, 2, Precision)
    rounding = BitField(10, 2, Rounding)
    infinity = BitField(12, 1, bool)

    def normalised(self) -> ControlWord:
        """Return this word as a processor reads it back: bit 6 set, bits 7 and 13 to 15 clear (SDM Vol.1 8.1.5)."""
        return ControlWord(self.bits & ~_FCW_CLEAR | _FCW_SET)

    def __str__(self) -> str:
        return _described(
            self.bits,
            4,
            masks=self.masks.letters(),
            precision=self.precision.name.lower(),
            rounding=self.rounding.name.lower(),
        )


class StatusWord(BitRegister):
    """FSW, the x87 status word; 16 bits, 0 initially."""

    exceptions = BitField(0, 6, FpException)
    sf = BitField(6, 1, bool)
    es = BitField(7, 1, bool)
    c0 = BitField(8, 1, bool)
    c1 = BitField(9, 1, bool)
    c2 = BitField(10, 1, bool)
    top = BitField(11, 3, int)
    c3 = BitField(14, 1, bool)
    b = BitField(15, 1, bool)

    def pending(self, control: ControlWord) -> bool:
        """Tell whether an exception is flagged here that ``control`` does not mask."""
        return bool(self.exceptions & ~control.masks)

    def recomputed(self, control: ControlWord) -> StatusWord:
        """Return this word with ES and B as a restore sets them: from flags and masks, whatever memory says.

        FXRSTOR and XRSTOR ignore both bits in memory; SDM Vol.1 8.1.3.3 ties them to the unmasked flags.
        """
        pending = self.pending(control)
        return self.replace(es=pending, b=pending)

    def __str__(self) -> str:
        return _described(
            self.bits,
            4,
            exceptions=self.exceptions.letters(),
            top=str(self.top),
            flags="+".join(self._raised("sf", "es", "c0", "c1", "c2", "c3", "b")),
        )
