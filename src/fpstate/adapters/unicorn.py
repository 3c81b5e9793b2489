"""Unicorn: names of its constants, values as its Python binding's ``reg_read`` and ``reg_write`` have them.

x87 registers are UC_X86_REG_FP0 to FP7, which are *physical* registers as (significand, sign and exponent): FPi is
ST((i - TOP) mod 8). FPTAG is the full tag word. Unicorn itself is not needed here:

    for name, value in to_unicorn(image).items():
        uc.reg_write(getattr(unicorn.x86_const, name), value)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fpstate.adapters.assign import assign, our_names
from fpstate.errors import RegisterError
from fpstate.image import Image, StatusWord
from fpstate.image.tag import slot_of

Value = int | tuple[int, int]

_PREFIX: Final = "UC_X86_REG_"
_FP: Final = f"{_PREFIX}FP"
NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{
            _PREFIX + theirs: ours
            for theirs, ours in (
                *(("FPCW", "fctrl"), ("FPSW", "fstat"), ("FPTAG", "ftag"), ("FIP", "fip"), ("FDP", "fdp")),
                *(("FOP", "fop"), ("MXCSR", "mxcsr")),
            )
        },
        **{f"{_PREFIX}{kind.upper()}MM{index}": f"{kind}mm{index}" for kind in "xyz" for index in range(32)},
        **{f"{_PREFIX}K{index}": f"k{index}" for index in range(8)},
    }
)
"""Unicorn's names to fpstate's; FP0 to FP7 come on top, as they depend on TOP."""


def to_unicorn(image: Image) -> dict[str, Value]:
    """Return the registers that the image's layout has room for, by the names of Unicorn's constants."""
    registers = image.registers
    found: dict[str, Value] = {theirs: registers[ours] for theirs, ours in NAMES.items() if ours in registers}
    if "st0" in registers:
        for index in range(8):
            value = registers[f"st{slot_of(index, registers.status_word.top)}"]
            found[f"{_FP}{index}"] = (value & (1 << 64) - 1, value >> 64)
    return found


def from_unicorn(values: Mapping[str, Value], image: Image) -> None:
    """Assign registers by the names of Unicorn's constants, all or none; TOP is that of FPSW if it is given.

    Raises RegisterError as ``assign`` does, and where a value is not of the binding's type for its register.
    """
    status = values.get(f"{_PREFIX}FPSW", image.registers.get("fstat", 0))
    top = StatusWord(status).top if isinstance(status, int) else 0
    table = {**NAMES, **{f"{_FP}{index}": f"st{slot_of(index, top)}" for index in range(8)}}
    ours = our_names(values, table, "Unicorn")
    assign(
        image,
        {name: _bits(theirs, value) for name, (theirs, value) in zip(ours, values.items(), strict=True)},
    )


def _bits(name: str, value: Value) -> int:
    is_pair = isinstance(value, tuple)
    if is_pair != (name.startswith(_FP) and name[len(_FP) :].isdigit()):
        raise RegisterError(name, f"{value!r}: FP0 to FP7 are (significand, exponent), the others integers")
    if not isinstance(value, tuple):
        return value
    significand, exponent = value
    if not (0 <= significand < 1 << 64 and 0 <= exponent < 1 << 16):
        raise RegisterError(name, f"{value!r} is no pair of 64 and 16 bits")
    return exponent << 64 | significand
