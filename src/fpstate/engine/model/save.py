"""The instructions that save: FXSAVE, XSAVE, XSAVEC, XSAVEOPT and XSAVES.

Sources: SDM Vol. 1, 10.5.1 and 13.7 to 13.11, and the instructions' pages in Vol. 2.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import COMPACTED_BIT, LEGACY_SIZE, Component, mask_of
from fpstate.engine.model.area import (
    FXSAVE_ALIGNMENT,
    HEADER,
    MXCSR,
    SSE_END,
    SSE_START,
    WORD,
    XSAVE_ALIGNMENT,
    XSTATE_BV,
    Area,
    check_alignment,
    check_length,
)
from fpstate.engine.model.behaviour import Pointers
from fpstate.engine.model.contents import CONTROL_SIZE, SLOTS, X87_SIZE, narrow, pending, without_pointers
from fpstate.engine.model.fault import PROTECTION, fault
from fpstate.engine.model.machine import Machine, Spans, reached, touched
from fpstate.engine.model.register_file import REACHED
from fpstate.image.control import MXCSR_INIT

_X87: Final = 1
_SSE: Final = 2
_MXCSR_CARRIERS: Final = mask_of(Component.SSE, Component.AVX)
_PKRU: Final = int(Component.PKRU)
_PKRU_SIZE: Final = 4
_PT: Final = mask_of(Component.PT)
_UINTR: Final = mask_of(Component.UINTR)
_TRACE_EN: Final = 1
_UINV: Final = 20
_POINTERS: Final = 6


def fxsave(machine: Machine, area: Area, address: int | None, wide: bool) -> None:
    """Save x87, MXCSR and SSE into 512 bytes; ``wide`` is REX.W."""
    check_alignment(machine, address, FXSAVE_ALIGNMENT)
    check_length(area, LEGACY_SIZE, "XS001")
    _put_x87(machine, area, wide)
    _put_mxcsr(machine, area)
    _put_sse(machine, area)


def xsave(machine: Machine, area: Area, rfbm: int, address: int | None, wide: bool) -> None:
    """Save all of RFBM in the standard format, also what is initial."""
    spans, size = machine.places.standard(rfbm)
    _check(machine, area, size, address)
    in_use = machine.in_use()
    written = rfbm if machine.behaviour.writes_disabled else rfbm & ~machine.xfd
    _put_standard(machine, area, rfbm, in_use, written, spans, wide)


def xsaveopt(machine: Machine, area: Area, rfbm: int, address: int | None, wide: bool) -> None:
    """Save what is in use of RFBM in the standard format, but not what the last restore from here left alone."""
    spans, _ = machine.places.standard(rfbm)
    _check(machine, area, touched(spans, rfbm & ~machine.xfd), address)
    in_use = machine.in_use()
    written = rfbm & in_use & ~unmodified(machine, address, 0)
    _put_standard(machine, area, rfbm, in_use, written, spans, wide)


def xsavec(machine: Machine, area: Area, rfbm: int, address: int | None, wide: bool) -> None:
    """Save what is in use of RFBM in the compacted format."""
    present = _present(machine, rfbm)
    _put_compacted(machine, area, rfbm, present, present, address, wide)


def xsaves(machine: Machine, area: Area, rfbm: int, address: int | None, wide: bool) -> None:
    """Save as XSAVEC does, supervisor components too, and with XSAVEOPT's modified optimisation.

    What is saved of Processor Trace and user interrupts is switched off: TraceEn and UINV are cleared.
    """
    if machine.cpl:
        raise fault(PROTECTION, f"XSAVES at CPL {machine.cpl}", "SDM Vol. 2, XSAVES")
    present = _present(machine, rfbm)
    written = present & ~unmodified(machine, address, COMPACTED_BIT | rfbm)
    _put_compacted(machine, area, rfbm, present, written, address, wide)
    values = machine.file.values
    if rfbm & _PT and values[Component.PT][0] & _TRACE_EN:
        control = values[Component.PT]
        machine.file.put(Component.PT, bytes([control[0] & ~_TRACE_EN]) + control[1:])
    if rfbm & _UINTR and values[Component.UINTR][_UINV]:
        state = values[Component.UINTR]
        machine.file.put(Component.UINTR, state[:_UINV] + b"\0" + state[_UINV + 1 :])


def unmodified(machine: Machine, address: int | None, xcomp_bv: int) -> int:
    """Return the components that a save to this address may leave out: XRSTOR_INFO matches, XMODIFIED is 0."""
    info = machine.file.info
    if info is None or address is None or not machine.behaviour.modified_optimisation:
        return 0
    if (info.address, info.xcomp_bv, info.cpl, info.non_root) != (
        *(address, xcomp_bv, machine.cpl),
        machine.non_root,
    ):
        return 0
    file = machine.file
    all_registers = machine.long_mode or machine.behaviour.upper_in_use
    return ~(file.modified | file.modified_upper) if all_registers else ~file.modified


def _check(machine: Machine, area: Area, size: int, address: int | None) -> None:
    check_alignment(machine, address, XSAVE_ALIGNMENT)
    check_length(area, size, "XS002")


def _present(machine: Machine, rfbm: int) -> int:
    """XSTATE_BV of a compacted save: what is in use, and SSE for an MXCSR that is not initial."""
    present = machine.in_use() & rfbm
    return present | rfbm & _SSE if machine.file.mxcsr != MXCSR_INIT else present


def _put_standard(
    machine: Machine, area: Area, rfbm: int, in_use: int, written: int, spans: Spans, wide: bool
) -> None:
    if written & _X87:
        _put_x87(machine, area, wide)
    if rfbm & _MXCSR_CARRIERS:
        _put_mxcsr(machine, area)
    if written & _SSE:
        _put_sse(machine, area)
    _put_extended(machine, area, written, spans)
    old = HEADER.unpack_from(area, XSTATE_BV)[0]
    area[XSTATE_BV : XSTATE_BV + 8] = (old & ~rfbm | in_use & rfbm).to_bytes(8, "little")


def _put_compacted(
    machine: Machine,
    area: Area,
    rfbm: int,
    present: int,
    written: int,
    address: int | None,
    wide: bool,
) -> None:
    spans, _ = machine.places.compacted(rfbm)
    needed = rfbm & ~machine.xfd if machine.behaviour.reads_absent else present
    _check(machine, area, touched(spans, needed), address)
    if written & _X87:
        _put_x87(machine, area, wide)
    if present & _SSE:
        _put_mxcsr(machine, area)
    if written & _SSE:
        _put_sse(machine, area)
    _put_extended(machine, area, written, spans)
    HEADER.pack_into(area, XSTATE_BV, present, COMPACTED_BIT | rfbm)


def _put_extended(machine: Machine, area: Area, written: int, spans: Spans) -> None:
    """Write registers that this mode has; what IA32_XFD holds back is written as initial."""
    file, held = machine.file, machine.xfd
    cut = _PKRU if not machine.behaviour.pkru_padding else -1
    for component, bit, start, end in spans if machine.long_mode else reached(spans):
        if written & bit:
            end = start + _PKRU_SIZE if component == cut else end
            values = file.initial if held & bit else file.values
            area[start:end] = values[component][: end - start]


def _put_x87(machine: Machine, area: Area, wide: bool) -> None:
    value, pointers = machine.file.values[Component.X87], machine.behaviour.pointers
    end, selectors = CONTROL_SIZE, machine.selectors()
    if pointers is not Pointers.KEPT and not pending(value):
        if pointers is Pointers.ZEROED:
            value, selectors = without_pointers(value), (0, 0)
        else:
            end = _POINTERS
    fields = value[:CONTROL_SIZE] if wide and machine.long_mode else narrow(value, selectors)
    area[:end] = fields[:end]
    area[SLOTS:X87_SIZE] = value[SLOTS:]


def _put_sse(machine: Machine, area: Area) -> None:
    end = SSE_END if machine.long_mode else SSE_START + REACHED[Component.SSE]
    area[SSE_START:end] = machine.file.values[Component.SSE][: end - SSE_START]


def _put_mxcsr(machine: Machine, area: Area) -> None:
    WORD.pack_into(area, MXCSR, machine.file.mxcsr)
    WORD.pack_into(area, MXCSR + 4, machine.cpu.mxcsr_mask)
