"""The processor's exceptions as Linux tells of them, and why a restore was refused.

Linux turns an exception into a signal; signal and si_code tell which it was. The trap number in a signal frame does so
too, but for one: #NM of a component that IA32_XFD holds back leaves the number of the thread's last fault
(``exc_device_not_available``; measured on Emerald Rapids, Linux 6.18).
"""

from __future__ import annotations

import signal as signals
from typing import Final

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY_SIZE,
    MIN_SIZE,
    component_name,
    components_in,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError, LayoutError, RestoreFault

SI_KERNEL: Final = 0x80
"""si_code of a SIGSEGV that no address is to blame for: #GP."""
ILL_ILLOPC: Final = 1
"""si_code of a SIGILL for #NM: IA32_XFD holds the component back, and the process has no permission for it."""
ILL_ILLOPN: Final = 2
"""si_code of a SIGILL for #UD."""

UD, NM, GP, PF = 6, 7, 13, 14
MNEMONICS: Final = {
    0: "#DE", 1: "#DB", 3: "#BP", 4: "#OF", 5: "#BR", UD: "#UD", NM: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS",
    GP: "#GP", PF: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip
"""SDM Vol. 3, table 6-1."""

REQUEST_HELP: Final = (
    "ask for it before: arch_prctl(ARCH_REQ_XCOMP_PERM, {component}), or fpstate run --request {name}"
)
_MXCSR: Final = range(24, 32)
_SSE_AT: Final = 160
_SSE_END: Final = 416


def vector_of(signal: int, si_code: int, trap: int) -> int:
    """Return the vector of the exception that Linux told by these three.

    ``trap`` is the frame's trap number. It counts where signal and si_code leave more than one exception.
    """
    if signal == signals.SIGILL and si_code in (ILL_ILLOPC, ILL_ILLOPN):
        return NM if si_code == ILL_ILLOPC else UD
    return trap


def restore_fault(
    signal: int,
    si_code: int,
    offset: int,
    xstate_bv: int,
    xcomp_bv: int,
    reason: str = "",
    reason_at: int = -1,
    *,
    cpu: Cpu | None = None,
) -> RestoreFault:
    """Return the error for an XRSTOR that was refused with this signal, on this processor if no other is named.

    ``offset`` is where a page fault's byte lies in the image. ``reason`` says what is wrong with the image, where that
    is known; it is what #GP is for, and ``reason_at`` the byte that it is about.
    """
    cpu = cpu or Cpu.host()
    vector = _refused_by(signal, si_code)
    mnemonic = MNEMONICS.get(vector, f"signal {signal}")
    if vector == PF:
        component = component_at(offset, xcomp_bv, cpu)
        return RestoreFault(
            f"XRSTOR raised #PF: byte {offset} of the image is not in memory; {_place(offset, component)} lies there",
            vector=vector,
            mnemonic=mnemonic,
            offset=offset,
            component=component,
            help="XRSTOR reads up to the last byte of all that it restores, present or not: map that much memory",
        )
    if vector == NM:
        component = next(components_in(xstate_bv & dynamic_components(cpu)), None)
        name = component_name(component) if component is not None else "a component that IA32_XFD holds back"
        return RestoreFault(
            f"XRSTOR raised #NM: no permission for {name}, which the image states (XSTATE_BV {xstate_bv:#x})",
            vector=vector,
            mnemonic=mnemonic,
            offset=LEGACY_SIZE,
            component=component,
            help=request_help(component) if component is not None else None,
        )
    why = reason or "the processor refuses this image"
    return RestoreFault(
        f"XRSTOR raised {mnemonic}: {why}",
        vector=vector,
        mnemonic=mnemonic,
        offset=reason_at if vector == GP and reason_at >= 0 else None,
        help="fpstate check --for xrstor says which rule an image breaks" if vector == GP else None,
    )


def illegal_image(why: str, offset: int, found: int, expected: int, component: int) -> ImageError:
    """Return the error for an image that is not given to XRSTOR at all; ``component``: without permission, or -1."""
    if component < 0:
        return ImageError(why, offset=offset, found=found, expected=expected)
    return ImageError(
        f"no permission for {component_name(component)}: XSTATE_BV {found:#x} at byte {offset} states it, and the"
        f" kernel permits {mask_text(expected)} of that",
        offset=offset,
        found=found,
        expected=expected,
        component=component,
        help=request_help(component),
    )


def request_help(component: int) -> str:
    """Say how a process gets permission for a component."""
    return REQUEST_HELP.format(component=component, name=component_name(component).lower())


def component_at(offset: int, xcomp_bv: int, cpu: Cpu) -> int | None:
    """Return the component at a byte of a processor's image; None in the header, in gaps and outside."""
    if offset in _MXCSR or _SSE_AT <= offset < _SSE_END:
        return 1
    if 0 <= offset < _SSE_AT:
        return 0
    try:
        layout = _layout(xcomp_bv, cpu)
    except LayoutError:
        return None
    for component in components_in(layout.mask & ~0b11):
        if layout.place(component).offset <= offset < layout.place(component).end:
            return component
    return None


def _layout(xcomp_bv: int, cpu: Cpu) -> Layout:
    if xcomp_bv & COMPACTED_BIT:
        return Layout.compacted(cpu, xcomp_bv & ~COMPACTED_BIT)
    return Layout.standard(cpu, cpu.enabled_xcr0)


def _place(offset: int, component: int | None) -> str:
    if component is not None:
        return component_name(component)
    return "the header" if LEGACY_SIZE <= offset < MIN_SIZE else "no component"


def _refused_by(signal: int, si_code: int) -> int:
    """Return the vector, or -1; XRSTOR itself raises no more than these."""
    match signal:
        case signals.SIGSEGV:
            return GP if si_code == SI_KERNEL else PF
        case signals.SIGBUS:
            return PF
        case signals.SIGILL:
            return NM if si_code == ILL_ILLOPC else UD
        case _:
            return -1


def dynamic_components(cpu: Cpu) -> int:
    """Return what IA32_XFD can hold back on a processor (CPUID.(0DH,i):ECX[2])."""
    return sum(1 << component for component, geometry in cpu.geometry.items() if geometry.xfd)
