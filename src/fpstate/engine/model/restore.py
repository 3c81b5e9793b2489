"""The instructions that restore: FXRSTOR, XRSTOR and XRSTORS, and the order in which they refuse an image.

Sources: SDM Vol. 1, 10.5.2, 13.8 and 13.12, and the instructions' pages in Vol. 2. The rules are those of
docs/rules.md. The order, measured on Emerald Rapids: a misaligned address (#GP), components that XCOMP_BV has and the
processor does not (#GP), memory that ends too early (#PF), the rest of the header (#GP), what IA32_XFD holds back
(#NM), MXCSR (#GP), and last, which is an assumption, supervisor components (#GP); ``Behaviour.header_first`` has the
other order. What is refused leaves the registers as they were, but for ``Behaviour.partial_restore``.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY,
    LEGACY_SIZE,
    MIN_SIZE,
    Component,
    mask_of,
    mask_text,
)
from fpstate.engine.model.area import (
    FXSAVE_ALIGNMENT,
    HEADER,
    MXCSR,
    RESERVED,
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
from fpstate.engine.model.contents import LOADED, X87_SIZE, pending, with_canonical_pointers, with_pointers_of
from fpstate.engine.model.fault import PROTECTION, fault, refusal
from fpstate.engine.model.instruction import check_mxcsr
from fpstate.engine.model.machine import Machine, Spans, reached, touched
from fpstate.engine.model.register_file import REACHED, RestoreInfo
from fpstate.engine.model.supervisor import check_supervisor
from fpstate.errors import ProcessorFault
from fpstate.image.control import MXCSR_INIT

_X87: Final = 1
_SSE: Final = 2
_PKRU: Final = mask_of(Component.PKRU)
_MXCSR_CARRIERS: Final = mask_of(Component.SSE, Component.AVX)


def fxrstor(machine: Machine, area: Area | bytes, address: int | None, wide: bool) -> None:
    """Load x87, MXCSR and SSE from 512 bytes; ``wide`` is REX.W."""
    check_alignment(machine, address, FXSAVE_ALIGNMENT)
    check_length(area, LEGACY_SIZE, "XS001")
    mxcsr = _checked_mxcsr(machine, area)
    _load_x87(machine, area, wide)
    _load_sse(machine, area)
    machine.file.mxcsr = mxcsr


def xrstor(machine: Machine, area: Area | bytes, rfbm: int, address: int | None, wide: bool) -> None:
    """Load or initialise the components in RFBM from either format."""
    check_alignment(machine, address, XSAVE_ALIGNMENT)
    check_length(area, MIN_SIZE, "XS001")
    present, xcomp_bv = HEADER.unpack_from(area, XSTATE_BV)
    if xcomp_bv & COMPACTED_BIT:
        if not machine.cpu.has("XSAVEC"):
            raise refusal("XS013", "the image is compacted, and this processor has no XSAVEC")
        _restore_compacted(machine, area, rfbm, present, xcomp_bv, machine.xcr0, address, wide)
        return
    spans, size = machine.places.standard(rfbm)
    if machine.behaviour.header_first:
        _check_standard(machine, area, present, xcomp_bv)
    check_length(area, size, "XS002")
    _check_standard(machine, area, present, xcomp_bv)
    machine.held_back(rfbm & present, "XS018")
    mxcsr = _checked_mxcsr(machine, area) if rfbm & _MXCSR_CARRIERS else None
    _load(machine, area, rfbm, present, spans, mxcsr, wide)
    _remember(machine, rfbm, address, 0)


def xrstors(machine: Machine, area: Area | bytes, rfbm: int, address: int | None, wide: bool) -> None:
    """Load or initialise the components in RFBM, supervisor ones too, from the compacted format."""
    if machine.cpl:
        raise fault(PROTECTION, f"XRSTORS at CPL {machine.cpl}", "SDM Vol. 2, XRSTORS")
    check_alignment(machine, address, XSAVE_ALIGNMENT)
    check_length(area, MIN_SIZE, "XS001")
    present, xcomp_bv = HEADER.unpack_from(area, XSTATE_BV)
    if not xcomp_bv & COMPACTED_BIT:
        raise refusal("XS014", f"XCOMP_BV is {xcomp_bv:#x}, XRSTORS takes the compacted format alone")
    enabled = machine.xcr0 | machine.xss
    _restore_compacted(machine, area, rfbm, present, xcomp_bv, enabled, address, wide)


def _restore_compacted(
    machine: Machine,
    area: Area | bytes,
    rfbm: int,
    present: int,
    xcomp_bv: int,
    enabled: int,
    address: int | None,
    wide: bool,
) -> None:
    held = xcomp_bv & ~COMPACTED_BIT
    if excess := held & ~enabled:
        raise refusal("XS009", f"XCOMP_BV has {mask_text(excess)}, enabled are {enabled:#x}")
    spans, _ = machine.places.compacted(held)
    if machine.behaviour.header_first:
        _check_compacted(area, present, held)
    check_length(area, touched(spans, rfbm if machine.behaviour.reads_absent else rfbm & present), "XS002")
    _check_compacted(area, present, held)
    machine.held_back(rfbm & present, "XS018")
    try:
        loads_mxcsr = rfbm & present & _SSE
        mxcsr = _checked_mxcsr(machine, area) if loads_mxcsr else MXCSR_INIT if rfbm & _SSE else None
    except ProcessorFault:
        if machine.behaviour.partial_restore:
            _load_partly(machine, area, rfbm, present, wide)
        raise
    check_supervisor(machine, area, rfbm, present, spans)
    _load(machine, area, rfbm, present, spans, mxcsr, wide)
    _remember(machine, rfbm, address, xcomp_bv)


def _load_partly(machine: Machine, area: Area | bytes, rfbm: int, present: int, wide: bool) -> None:
    """Do what is done before MXCSR is found to be illegal: what is absent is initial, x87 and XMM are loaded."""
    _load(machine, area, rfbm & ~(present & ~LEGACY | _PKRU), present, (), None, wide)


def _check_standard(machine: Machine, area: Area | bytes, present: int, xcomp_bv: int) -> None:
    if excess := present & ~machine.xcr0:
        raise refusal("XS007", f"XSTATE_BV {present:#x} has {excess:#x}, XCR0 is {machine.xcr0:#x}")
    if xcomp_bv:
        raise refusal("XS012", f"XCOMP_BV is {xcomp_bv:#x} without bit 63")
    if any(area[RESERVED : RESERVED + 8]):
        raise refusal("XS015", "bytes 16 to 23 of the header are not zero")


def _check_compacted(area: Area | bytes, present: int, held: int) -> None:
    if excess := present & ~held:
        raise refusal("XS008", f"XSTATE_BV {present:#x} has {excess:#x}, which XCOMP_BV gives no room")
    if any(area[RESERVED : RESERVED + 8]):
        raise refusal("XS015", "bytes 16 to 23 of the header are not zero")
    if any(area[RESERVED + 8 : MIN_SIZE]):
        raise refusal("XS016", "bytes 24 to 63 of the header are not zero")


def _checked_mxcsr(machine: Machine, area: Area | bytes) -> int:
    mxcsr: int = WORD.unpack_from(area, MXCSR)[0]
    check_mxcsr(machine, mxcsr)
    return mxcsr


def _load(
    machine: Machine,
    area: Area | bytes,
    rfbm: int,
    present: int,
    spans: Spans,
    mxcsr: int | None,
    wide: bool,
) -> None:
    file = machine.file
    loaded = rfbm & present
    if loaded & _X87:
        _load_x87(machine, area, wide)
    if loaded & _SSE:
        _load_sse(machine, area)
    if mxcsr is not None:
        file.mxcsr = mxcsr
    for component, bit, start, end in spans if machine.long_mode else reached(spans):
        if loaded & bit:
            value = bytes(area[start:end])
            if component in REACHED and not machine.long_mode:
                file.put_lower(component, value + file.values[component][end - start :])
                continue
            convert = LOADED.get(component)
            file.put(component, convert(value) if convert else value)
    initialise = file.initialise if machine.long_mode else file.initialise_lower
    absent = rfbm & ~present
    while absent:
        low = absent & -absent
        initialise(low.bit_length() - 1)
        absent ^= low


def _load_sse(machine: Machine, area: Area | bytes) -> None:
    if machine.long_mode:
        machine.file.put(Component.SSE, bytes(area[SSE_START:SSE_END]))
    else:
        size = REACHED[Component.SSE]
        upper = machine.file.values[Component.SSE][size:]
        machine.file.put_lower(Component.SSE, bytes(area[SSE_START : SSE_START + size]) + upper)


def _load_x87(machine: Machine, area: Area | bytes, wide: bool) -> None:
    value = LOADED[Component.X87](bytes(area[:X87_SIZE]))
    if not (wide and machine.long_mode):
        value = machine.take_selectors(value)
    else:
        machine.file.selectors = (0, 0)
        behaviour = machine.behaviour
        if behaviour.fip_bits < 64 or behaviour.fdp_bits < 64:
            value = with_canonical_pointers(value, behaviour.fip_bits, behaviour.fdp_bits)
    if machine.behaviour.pointers is Pointers.UNTOUCHED and not pending(value):
        value = with_pointers_of(value, machine.file.values[Component.X87])
    machine.file.put(Component.X87, value)


def _remember(machine: Machine, rfbm: int, address: int | None, xcomp_bv: int) -> None:
    """Set XRSTOR_INFO and XMODIFIED; an unknown address matches no save."""
    file = machine.file
    file.modified = file.modified_upper = ~rfbm
    file.info = None if address is None else RestoreInfo(machine.cpl, machine.non_root, address, xcomp_bv)
