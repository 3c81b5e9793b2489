"""What gdb itself reads from the registers, and where that is not what the bytes say.

gdb before 14 takes Intel's component offsets everywhere: AVX-512 state of AMD processors is at others, so it reads
zeros, leftovers, or nothing there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import gdb

from fpstate.image import Image, Registers

_COMPARED: Final = ("mxcsr", "fctrl", "xmm", "ymm", "zmm", "k")
_SCALARS: Final = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_FLAGS)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A register with its value and gdb's; ``theirs`` is None where gdb reads nothing."""

    register: str
    ours: int
    theirs: int | None


def disagreements(image: Image, frame: gdb.Frame) -> list[Disagreement]:
    """Return the registers of which gdb reads another value than the image holds, the widest of each.

    Registers that are initial in the image and unavailable in gdb are none.
    """
    return list(_compare(image.registers, frame))


def _compare(registers: Registers, frame: gdb.Frame) -> Iterator[Disagreement]:
    for name in registers.names(widest=True):
        if name.rstrip("0123456789") not in _COMPARED:
            continue
        ours = registers[name]
        theirs = _gdb_value(frame, name, registers.size_of(name))
        if theirs != ours and not (theirs is None and ours == 0):
            yield Disagreement(name, ours, theirs)


def _gdb_value(frame: gdb.Frame, name: str, size: int) -> int | None:
    try:
        value = frame.read_register(name)
        if value.type.code in _SCALARS:
            return int(value) & (1 << 8 * size) - 1
        lanes = value[f"v{size}_int8"]
        return sum((int(lanes[index]) & 0xFF) << 8 * index for index in range(size))
    except (gdb.error, ValueError):
        return None
