"""Control registers of the extended state: XCR0, IA32_XSS, IA32_XFD and IA32_XFD_ERR.

Sources: SDM Vol. 1, 13.3 and 13.14; Vol. 2, XGETBV and XSETBV; Vol. 4 (the MSRs).
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import Component, mask_of, xcr0_problem
from fpstate.engine.model.fault import PROTECTION, UNDEFINED, fault
from fpstate.engine.model.machine import Machine
from fpstate.image.control import MXCSR_INIT

IA32_XSS: Final = 0xDA0
IA32_XFD: Final = 0x1C4
IA32_XFD_ERR: Final = 0x1C5

_SSE: Final = mask_of(Component.SSE)


def xgetbv(machine: Machine, index: int) -> int:
    """Return XCR0 for an index of 0, what is in use of it for 1; raises #UD and #GP."""
    _check_osxsave(machine, "SDM Vol. 2, XGETBV")
    if index == 0:
        return machine.xcr0
    if index != 1 or not machine.cpu.has("XGETBV1"):
        raise fault(PROTECTION, f"XGETBV of register {index}", "SDM Vol. 2, XGETBV")
    in_use = machine.in_use()
    if machine.file.mxcsr != MXCSR_INIT:
        in_use |= _SSE
    if machine.behaviour.shows_disabled:
        in_use |= machine.file.in_use & machine.xfd
    return in_use & machine.xcr0


def xsetbv(machine: Machine, index: int, value: int) -> None:
    """Write XCR0; raises #UD, and #GP at CPL 3, for another register and for what ``xcr0_problem`` says."""
    _check_osxsave(machine, "SDM Vol. 2, XSETBV")
    if machine.cpl:
        raise fault(PROTECTION, f"XSETBV at CPL {machine.cpl}", "SDM Vol. 2, XSETBV")
    problem = f"register {index}" if index else xcr0_problem(value, machine.cpu.xcr0)
    if problem:
        raise fault(PROTECTION, f"XSETBV: {problem}", "SDM Vol. 1, 13.3")
    machine.xcr0 = value


def rdmsr(machine: Machine, msr: int) -> int:
    """Return IA32_XSS, IA32_XFD or IA32_XFD_ERR; raises #GP above CPL 0 and for what does not exist."""
    _check_msr(machine, msr, 0)
    return {IA32_XSS: machine.xss, IA32_XFD: machine.xfd, IA32_XFD_ERR: machine.xfd_err}[msr]


def wrmsr(machine: Machine, msr: int, value: int) -> None:
    """Write one of the three; raises #GP also for bits that the processor does not have."""
    _check_msr(machine, msr, value)
    if msr == IA32_XSS:
        machine.xss = value
    elif msr == IA32_XFD:
        machine.xfd = value
    else:
        machine.xfd_err = value


def _check_osxsave(machine: Machine, source: str) -> None:
    if not machine.cpu.has("XSAVE"):
        raise fault(UNDEFINED, f"{machine.cpu.name} has no XSAVE", source)
    if not machine.osxsave:
        raise fault(UNDEFINED, "CR4.OSXSAVE is clear", source)


def _check_msr(machine: Machine, msr: int, value: int) -> None:
    if machine.cpl:
        raise fault(PROTECTION, f"MSR {msr:#x} at CPL {machine.cpl}", "SDM Vol. 2, RDMSR and WRMSR")
    feature, writable = {
        IA32_XSS: ("XSAVES", machine.cpu.xss),
        IA32_XFD: ("XFD", _disablable(machine)),
        IA32_XFD_ERR: ("XFD", _disablable(machine)),
    }.get(msr, ("", 0))
    if not machine.cpu.has(feature):
        raise fault(PROTECTION, f"{machine.cpu.name} has no MSR {msr:#x}", "SDM Vol. 4")
    if excess := value & ~writable:
        raise fault(PROTECTION, f"MSR {msr:#x}: bits {excess:#x} cannot be set", "SDM Vol. 1, 13.3 and 13.14")


def _disablable(machine: Machine) -> int:
    """What IA32_XFD may hold back: the components with ECX[2] in their sub-leaf of CPUID leaf 0DH."""
    return mask_of(*(number for number, geometry in machine.cpu.geometry.items() if geometry.xfd))
