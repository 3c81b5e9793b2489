"""gdb: the names of ``info registers all``, each an unsigned integer of the register's bits.

``ftag`` is the full 16-bit tag word, ``fiseg``/``fioff`` and ``foseg``/``fooff`` the halves of FIP and FDP, ``bnd0raw``
a bound register. Names: gdb's features/i386/*.xml. Within gdb, ``int()`` of a value gives the bits of scalars only:

    from_gdb({"mxcsr": int(frame.read_register("mxcsr"))}, image)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fpstate.adapters.assign import assign, our_names
from fpstate.image import Image

NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{f"st{index}": f"st{index}" for index in range(8)},
        **{
            name: name
            for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop", "mxcsr", "pkru")
        },
        **{f"{kind}mm{index}": f"{kind}mm{index}" for kind in "xyz" for index in range(32)},
        **{f"k{index}": f"k{index}" for index in range(8)},
        **{f"bnd{index}raw": f"bnd{index}" for index in range(4)},
        **{name: name for name in ("bndcfgu", "bndstatus", "pl3_ssp")},
    }
)
"""gdb's names to fpstate's."""


def to_gdb(image: Image) -> dict[str, int]:
    """Return the registers that the image's layout has room for, by gdb's names."""
    registers = image.registers
    return {theirs: registers[ours] for theirs, ours in NAMES.items() if ours in registers}


def from_gdb(values: Mapping[str, int], image: Image) -> None:
    """Assign registers by gdb's names, all or none. Raises RegisterError as ``assign`` does."""
    assign(image, dict(zip(our_names(values, NAMES, "gdb"), values.values(), strict=True)))
