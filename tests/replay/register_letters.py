"""The register lists of oracle files, and the bytes that their letters stand for.

The form is told in data/oracles_intel/README.md: MXCSR, PKRU, the x87 control fields, then a component each.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fpstate.arch import Component, Layout
from fpstate.image.control import FCW_INIT
from fpstate.image.initial import initial_bytes

COMPONENTS: Final = (
    *(Component.X87, Component.SSE, Component.AVX, Component.OPMASK, Component.ZMM_HI256),
    *(Component.HI16_ZMM, Component.TILECFG, Component.TILEDATA),
)
"""Those of a register list after MXCSR, PKRU and the x87 control fields."""
CONTROL: Final = -2
"""Stands for bytes 0 to 23: FCW, FSW, the tags, FOP, FIP, FDP."""
REACH_32: Final[Mapping[int, int]] = {
    Component.SSE: 128,
    Component.AVX: 128,
    Component.ZMM_HI256: 256,
    Component.HI16_ZMM: 0,
}
"""Bytes of registers 0 to 7, which is what instructions outside 64-bit mode reach."""

_STACK: Final = slice(32, 160)
_XMM: Final = slice(160, 416)
_SLOTS: Final = int.from_bytes((b"\xff" * 10 + bytes(6)) * 8, "little")
_WORDS: Final = struct.Struct("<HHBBHQQ")
_PENDING: Final = 0x8080


@dataclass(frozen=True)
class Pointers:
    """How a processor keeps FIP and FDP: the bits that it holds of each, the rest being copies of the highest one.

    ``dropped``: FOP, FIP and FDP become zero unless an unmasked exception is pending.
    """

    fip_bits: int
    fdp_bits: int
    dropped: bool

    @classmethod
    def of(cls, machine: dict[str, Any]) -> Pointers:
        """Return those of a recorded machine: as measured there, or else as wide as its linear addresses."""
        intel = machine["processor"]["vendor"] == "GenuineIntel"
        width = machine["linear_address_bits"]
        measured = machine.get("pointer_bits", {"fip": width, "fdp": 64 if intel else width})
        return cls(measured["fip"], measured["fdp"], dropped=not intel)


def control_fields(raw: bytes, pointers: Pointers, *, wide: bool, read_wide: bool = True) -> bytes:
    """Return bytes 0 to 23 as they are read after a restore of ``raw``.

    ``wide``: the restore had REX.W; ``read_wide``: so had the save. Without it 32 bits of FIP and FDP are kept, and
    the selectors are zero.
    """
    control, status, tags, _, opcode, fip, fdp = _WORDS.unpack(raw)
    control = control & 0x1F7F | 0x40
    pending = status & ~control & 0x3F
    status = status | _PENDING if pending else status & ~_PENDING
    opcode &= 0x7FF
    if not wide:
        fip, fdp = fip & 0xFFFFFFFF, fdp & 0xFFFFFFFF
    fip, fdp = _extended(fip, pointers.fip_bits), _extended(fdp, pointers.fdp_bits)
    if not read_wide:
        fip, fdp = fip & 0xFFFFFFFF, fdp & 0xFFFFFFFF
    if pointers.dropped and not pending:
        opcode = fip = fdp = 0
    return _WORDS.pack(control, status, tags, 0, opcode, fip, fdp)


def _extended(value: int, bits: int) -> int:
    low = value & (1 << bits) - 1
    return low | ((1 << 64) - (1 << bits) if low >> bits - 1 else 0)


class Source:
    """What one letter stands for: an image's bytes of each component, at the places of a layout."""

    def __init__(self, data: bytes | bytearray | memoryview | None, layout: Layout | None) -> None:
        self._data, self._layout = data, layout

    def read(self, component: int) -> bytes | None:
        """Return a component's bytes, zeros behind the end; None where the layout has no place for it."""
        if self._data is None:
            return _initial(component)
        if component == CONTROL:
            return bytes(self._data[:24])
        if component == Component.X87:
            return without_padding(bytes(self._data[_STACK]))
        if component == Component.SSE:
            return bytes(self._data[_XMM])
        if self._layout is None or component not in self._layout:
            return None
        place = self._layout.place(component)
        return bytes(self._data[place.offset : place.end]).ljust(place.size, b"\0")


INITIAL: Final = Source(None, None)


def without_padding(stack: bytes) -> bytes:
    """Return the eight slots of ST with zeros in the six bytes behind each."""
    return (int.from_bytes(stack, "little") & _SLOTS).to_bytes(128, "little")


def holds(answer: int | str, expected: bytes, sources: Mapping[str, Source], component: int) -> bool:
    """Tell whether an answer, letters, digits or a digest, stands for these bytes."""
    if component == CONTROL and isinstance(answer, str) and len(answer) == 48:
        return bytes.fromhex(answer) == expected
    if isinstance(answer, int):
        return zlib.crc32(expected) == answer
    known = sources[answer[0]].read(component)
    return known is not None and known[: len(expected)] == expected


def _initial(component: int) -> bytes:
    if component == CONTROL:
        return FCW_INIT.to_bytes(2, "little").ljust(24, b"\0")
    if component == Component.X87:
        return bytes(128)
    return initial_bytes(component, 0, _SIZES[component])


_SIZES: Final = {1: 256, 2: 256, 5: 64, 6: 512, 7: 1024, 17: 64, 18: 8192}
