"""What XRSTORS refuses inside components, and the state that forbids it.

Sources: SDM Vol. 1, 13.5.6 (Processor Trace), 13.5.11 (user interrupts), 13.12; Vol. 1, 17.2 (CET).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import Component, mask_of
from fpstate.engine.model.area import Area
from fpstate.engine.model.fault import PROTECTION, fault, refusal
from fpstate.engine.model.machine import Machine, Spans

_PT_USED: Final = 72
_TRACE_EN: Final = 1
_UINV: Final = 20
_CET_RESERVED: Final = 0x3C0
_SUPPRESS_AND_TRACKER: Final = 0xC00
_SSP_RESERVED: Final = 3
_PASID_AND_VALID: Final = 0x800FFFFF


def check_supervisor(machine: Machine, area: Area | bytes, rfbm: int, present: int, spans: Spans) -> None:
    """Raise #GP for what a supervisor component does not take, or while it is in use."""
    if not rfbm & _CHECKED:
        return
    values = machine.file.values
    if rfbm & mask_of(Component.PT) and values[Component.PT][0] & _TRACE_EN:
        raise fault(PROTECTION, "TraceEn is set while Processor Trace is restored", "SDM Vol. 2, XRSTORS")
    if rfbm & mask_of(Component.UINTR) and values[Component.UINTR][_UINV]:
        raise fault(PROTECTION, "UINV is not zero while user interrupts are restored", "SDM Vol. 2, XRSTORS")
    for component, bit, start, end in spans:
        if rfbm & present & bit:
            check_contents(component, bytes(area[start:end]))


def check_contents(component: int, data: bytes) -> None:
    """Raise #GP for bytes of a supervisor component that neither XRSTORS nor WRMSR takes."""
    check = _CHECKS.get(component)
    if check is not None:
        check(data)


def _check_pt(data: bytes) -> None:
    if any(data[_PT_USED:]):
        raise fault(PROTECTION, "bytes 72 to 127 of Processor Trace are not zero", "SDM Vol. 1, 13.5.6")


def _check_cet_u(data: bytes) -> None:
    control = int.from_bytes(data[:8], "little")
    if control & _CET_RESERVED or control & _SUPPRESS_AND_TRACKER == _SUPPRESS_AND_TRACKER:
        raise refusal("XS019", f"IA32_U_CET {control:#x} has bits that cannot be loaded")
    _check_pointers(data[8:])


def _check_pasid(data: bytes) -> None:
    if excess := int.from_bytes(data, "little") & ~_PASID_AND_VALID:
        raise fault(PROTECTION, f"IA32_PASID has reserved bits {excess:#x}", "SDM Vol. 4, IA32_PASID")


def _check_pointers(data: bytes) -> None:
    for start in range(0, len(data), 8):
        if data[start] & _SSP_RESERVED:
            pointer = int.from_bytes(data[start : start + 8], "little")
            raise refusal("XS019", f"the shadow-stack pointer {pointer:#x} is not a multiple of 4")


_CHECKS: Final[Mapping[int, Callable[[bytes], None]]] = MappingProxyType(
    {
        Component.PT: _check_pt,
        Component.PASID: _check_pasid,
        Component.CET_U: _check_cet_u,
        Component.CET_S: _check_pointers,
    }
)
_CHECKED: Final = mask_of(*_CHECKS, Component.UINTR)
