"""libdebug: the names of its ``regs`` attributes, st0 to st7 as floats, the others as integers.

Its floats come from ``ctypes.c_longdouble``, so what a double does not hold is lost there. Here that is refused,
unless it is asked for:

    for name, value in to_libdebug(image, lossy=True).items():
        setattr(debugger.regs, name, value)

libdebug has no MXCSR and no x87 control registers. Its ``mm0`` to ``mm7`` are not among the names here: it takes them
for ST(i), which they are only while TOP is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fpstate.adapters.assign import assign, our_names
from fpstate.errors import RegisterError
from fpstate.image import Float80, Image

NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{f"st{index}": f"st{index}" for index in range(8)},
        **{f"{kind}mm{index}": f"{kind}mm{index}" for kind in "xyz" for index in range(32)},
    }
)
"""libdebug's names to fpstate's."""


def to_libdebug(image: Image, *, lossy: bool = False) -> dict[str, int | float]:
    """Return the registers that the image's layout has room for, by libdebug's names.

    Raises RegisterError for an x87 register that a float does not hold exactly, unless ``lossy`` is set.
    """
    registers = image.registers
    return {
        theirs: _float(theirs, registers[ours], lossy) if theirs.startswith("st") else registers[ours]
        for theirs, ours in NAMES.items()
        if ours in registers
    }


def from_libdebug(values: Mapping[str, int | float], image: Image) -> None:
    """Assign registers by libdebug's names, all or none. Raises RegisterError as ``assign`` does."""
    ours = our_names(values, NAMES, "libdebug")
    assign(image, {name: _bits(name, value) for name, value in zip(ours, values.values(), strict=True)})


def _float(name: str, bits: int, lossy: bool) -> float:
    value = Float80(bits).to_float_lossy()
    if not lossy and Float80.from_float(value).bits != bits:
        raise RegisterError(
            name, f"a float does not hold {Float80(bits)}", help="lossy=True takes the nearest"
        )
    return value


def _bits(name: str, value: int | float) -> int:
    if name.startswith("st"):
        if not isinstance(value, float):
            raise RegisterError(name, f"{value!r} is no float, as libdebug has them")
        return Float80.from_float(value).bits
    if not isinstance(value, int):
        raise RegisterError(name, f"{value!r} is no integer")
    return value
