"""A component's bytes between memory and registers: what a restore takes of them, and what a save writes.

Sources: SDM Vol. 1, 8.1.3.3, 8.1.5 and 10.5.1 (x87), 13.5 (the others); reserved bits and padding: measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import COMPONENTS, Component
from fpstate.image.canonical import register_spans
from fpstate.image.tile import is_loaded

CONTROL_SIZE: Final = 24
"""Bytes of the x87 fields before MXCSR."""
SLOTS: Final = 32
"""Where the x87 register stack begins."""
X87_SIZE: Final = 160

_FCW_SET: Final = 0x0040
_FCW_CLEAR: Final = 0xE080
_FLAGS: Final = 0x003F
_ES_AND_B: Final = 0x8080
_FOP_MASK: Final = 0x07FF
_SLOT_VALUES: Final = int.from_bytes((b"\xff" * 10 + bytes(6)) * 8, "little")
_POINTERS: Final = 6
_NO_POINTERS: Final = bytes(CONTROL_SIZE - _POINTERS)
_LOW_HALF: Final = 4


def normalised_control(control: int) -> int:
    """Return FCW as the processor keeps it: bit 6 set, bits 7 and 13 to 15 clear."""
    return control & ~_FCW_CLEAR | _FCW_SET


def with_summary(status: int, control: int) -> int:
    """Return FSW with ES and B as flags and masks have them, whatever memory says."""
    return status | _ES_AND_B if status & ~control & _FLAGS else status & ~_ES_AND_B


def x87_loaded(area: bytes) -> bytes:
    """Return the 160 bytes of x87 as a restore with REX.W takes them from a legacy region; MXCSR's are zeros."""
    control = normalised_control(area[0] | area[1] << 8)
    status = with_summary(area[2] | area[3] << 8, control)
    opcode = (area[6] | area[7] << 8) & _FOP_MASK
    words = control | status << 16 | area[4] << 32 | opcode << 48
    slots = int.from_bytes(area[SLOTS:X87_SIZE], "little") & _SLOT_VALUES
    return b"".join(
        (
            *(words.to_bytes(8, "little"), area[8:CONTROL_SIZE], bytes(SLOTS - CONTROL_SIZE)),
            slots.to_bytes(X87_SIZE - SLOTS, "little"),
        )
    )


def with_control(value: bytes, *, control: int | None = None, status: int | None = None) -> bytes:
    """Return x87 registers with another FCW or FSW, ES and B recomputed."""
    control = value[0] | value[1] << 8 if control is None else normalised_control(control)
    status = value[2] | value[3] << 8 if status is None else status
    words = control | with_summary(status, control) << 16
    return words.to_bytes(4, "little") + value[4:]


def pending(value: bytes) -> bool:
    """Tell whether FSW.ES is set: an unmasked x87 exception is pending."""
    return bool(value[2] & 0x80)


def without_pointers(value: bytes) -> bytes:
    """Return x87 registers with FOP, FIP and FDP as zeros."""
    return value[:_POINTERS] + _NO_POINTERS + value[CONTROL_SIZE:]


def with_pointers_of(value: bytes, other: bytes) -> bytes:
    """Return x87 registers with FOP, FIP and FDP of others."""
    return value[:_POINTERS] + other[_POINTERS:CONTROL_SIZE] + value[CONTROL_SIZE:]


def with_canonical_pointers(value: bytes, fip_bits: int, fdp_bits: int) -> bytes:
    """Return x87 registers with so many bits of FIP and FDP, sign-extended to 64."""
    fip, fdp = (
        _sign_extended(int.from_bytes(value[start : start + 8], "little"), bits)
        for start, bits in ((8, fip_bits), (16, fdp_bits))
    )
    return value[:8] + fip.to_bytes(8, "little") + fdp.to_bytes(8, "little") + value[CONTROL_SIZE:]


def _sign_extended(value: int, bits: int) -> int:
    sign = 1 << bits - 1
    return ((value & (sign << 1) - 1 ^ sign) - sign) & (1 << 64) - 1


def narrow(value: bytes, selectors: tuple[int, int]) -> bytes:
    """Return the x87 fields as a save without REX.W writes them: pointers of 32 bits, then FCS and FDS."""
    pointers = (
        value[start : start + _LOW_HALF] + selector.to_bytes(2, "little") + bytes(2)
        for start, selector in zip((8, 16), selectors, strict=True)
    )
    return value[:8] + b"".join(pointers)


def tile_configuration(area: bytes) -> bytes:
    """Return TILECFG as a restore takes it: an illegal configuration becomes the initial one, without a fault."""
    return area if is_loaded(area) else bytes(len(area))


def _without_padding(spans: tuple[tuple[int, int], ...], area: bytes) -> bytes:
    value = bytearray(len(area))
    for offset, size in spans:
        value[offset : offset + size] = area[offset : offset + size]
    return bytes(value)


LOADED: Final[Mapping[int, Callable[[bytes], bytes]]] = MappingProxyType(
    {
        Component.X87: x87_loaded,
        Component.TILECFG: tile_configuration,
        **{
            component: partial(_without_padding, register_spans(component))
            for component in (Component.BNDCSR, Component.PKRU)
            if component in COMPONENTS
        },
    }
)
"""How a restore takes the bytes of a component that does not take them as they are."""
