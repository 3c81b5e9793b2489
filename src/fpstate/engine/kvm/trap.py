"""Why a guest stopped, read from its registers and its exception stack, and told as Linux tells it."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from fpstate.engine.kvm.abi import EXIT_INTR, EXIT_IO, EXITS, IO_OUT
from fpstate.engine.kvm.context import RESUME_FLAG, Context
from fpstate.engine.kvm.space import GuestSpace
from fpstate.engine.kvm.supervisor import EXIT_ROUTINE, REPORT_PORT, WITH_ERROR_CODE, vector_at
from fpstate.program.block import OUT_INSTRUCTION, PORT

DEBUG, BREAKPOINT, INVALID_OPCODE, NOT_AVAILABLE, GENERAL_PROTECTION, PAGE_FAULT = 1, 3, 6, 7, 13, 14
X87_ERROR, SIMD_ERROR = 16, 19
_DIVIDE, _OVERFLOW, _BOUND, _NO_SEGMENT, _STACK, _ALIGNMENT = 0, 4, 5, 11, 12, 17
_SI_KERNEL = 0x80
_MAPERR, _ACCERR, _PKUERR = 1, 2, 4
_PROTECTION: Final = 1
_PROTECTION_KEY: Final = 0x20
_RESERVED: Final = 8
"""Bits 0 and 3 of a page fault's error code (SDM vol. 3, 4.7)."""
_TASK_SIZE_MAX: Final = 0x7FFFFFFFF000
_SIGNALS: Final = {
    _DIVIDE: ("SIGFPE", 1),
    DEBUG: ("SIGTRAP", 2),
    BREAKPOINT: ("SIGTRAP", _SI_KERNEL),
    _OVERFLOW: ("SIGSEGV", _SI_KERNEL),
    _BOUND: ("SIGSEGV", _SI_KERNEL),
    INVALID_OPCODE: ("SIGILL", 2),
    NOT_AVAILABLE: ("SIGILL", 1),
    _NO_SEGMENT: ("SIGBUS", _SI_KERNEL),
    _STACK: ("SIGBUS", _SI_KERNEL),
    GENERAL_PROTECTION: ("SIGSEGV", _SI_KERNEL),
    PAGE_FAULT: ("SIGSEGV", _MAPERR),
    X87_ERROR: ("SIGFPE", 0),
    _ALIGNMENT: ("SIGBUS", 1),
    SIMD_ERROR: ("SIGFPE", 0),
}
"""Signal and si_code for each vector (arch/x86/kernel/traps.c)."""
_FLOAT_CODES: Final = ((0x01, 7), (0x04, 3), (0x08, 4), (0x12, 5), (0x20, 6))
"""Exception flags to FPE_FLTINV, FLTDIV, FLTOVF, FLTUND (denormals too), FLTRES (fpu__exception_code)."""


_BREAKPOINTS: Final = (b"\xcc", b"\xcd\x03")
"""INT3, and INT 3."""


class Why(enum.Enum):
    """What stopped a guest."""

    PREEMPTED = "preempted"
    LEFT = "left"
    FAULT = "fault"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Stop:
    """One stop. ``operation``: EAX of an orderly exit, ``vector`` the exception that told it, if one did; the rest is
    a fault's, ``rip`` and ``address`` as the guest has them; ``reason``: in words, where KVM stopped it for a reason
    of its own."""

    why: Why
    operation: int = 0
    vector: int = 0
    error_code: int = 0
    address: int = 0
    rip: int = 0
    reason: str = ""

    def __str__(self) -> str:
        match self.why:
            case Why.FAULT:
                return f"exception {self.vector} at {self.rip:#x}, address {self.address:#x}"
            case Why.UNEXPECTED:
                return f"{self.reason} at {self.rip:#x}"
            case Why.LEFT:
                return f"it left with {self.operation}"
        return "it was preempted"


_PREEMPTED: Final = Stop(Why.PREEMPTED)


def read_stop(exit_reason: int, io: tuple[int, int, int, int], context: Context, space: GuestSpace) -> Stop:
    """Tell why a guest stopped, and bring ``context`` back to where the guest goes on, if it does.

    ``io``: direction, size, port and count of KVM_EXIT_IO, which is complete: rip is behind the instruction.
    """
    if exit_reason == EXIT_INTR:
        return _PREEMPTED
    direction, _, port, _ = io
    if exit_reason == EXIT_IO and direction == IO_OUT:
        if context.cpl == 3 and port == PORT:
            return Stop(Why.LEFT, operation=context["rax"] & 0xFFFFFFFF)
        vector = vector_at(context["rip"])
        if context.cpl == 0 and port == REPORT_PORT and vector is not None:
            return _exception(vector, context, space)
    name = EXITS.get(exit_reason, str(exit_reason))
    return Stop(Why.UNEXPECTED, rip=context["rip"], reason=f"KVM_EXIT_{name}")


def behind_breakpoint(context: Context, space: GuestSpace) -> bool:
    """Whether a guest that was preempted may be about to take the #BP of an INT3.

    KVM_GET_VCPU_EVENTS does not tell #BP, as rip is expected to be the instruction's until it is delivered
    (kvm_exception_is_soft). A KVM that moves rip on at once would lose it with the vCPU's registers.
    """
    rip = context["rip"]
    return any(space.code(rip - len(code), len(code)) == code for code in _BREAKPOINTS)


def signal_of(stop: Stop, status: int, unmasked: int) -> tuple[str, int]:
    """Return Linux' signal and si_code for a fault; ``status`` and ``unmasked``: of the unit that raised #MF or #XM."""
    name, code = _SIGNALS.get(stop.vector, ("SIGSEGV", _SI_KERNEL))
    if stop.vector in (X87_ERROR, SIMD_ERROR):
        raised = status & unmasked
        code = next((code for flags, code in _FLOAT_CODES if raised & flags), 0)
    elif stop.vector == PAGE_FAULT and stop.error_code & _PROTECTION_KEY:
        code = _PKUERR
    elif stop.vector == PAGE_FAULT and stop.error_code & _PROTECTION and stop.address < _TASK_SIZE_MAX:
        code = _ACCERR
    return name, code


def _exception(vector: int, context: Context, space: GuestSpace) -> Stop:
    """Read what a handler reported: the frame that the processor pushed (SDM vol. 3, 6.14.2)."""
    stack = context["rsp"]
    size = 48 if vector in WITH_ERROR_CODE else 40
    words = struct.unpack(f"<{size // 8}Q", space.exception_frame(stack, size))
    error_code = words[0] & 0xFFFFFFFF if vector in WITH_ERROR_CODE else 0
    rip, _, rflags, rsp, _ = words[-5:]
    left = _left_at(vector, error_code, rip, space)
    context.leave_handler(rip=rip if left is None else left, rsp=rsp, rflags=rflags & ~RESUME_FLAG)
    if left is not None:
        return Stop(Why.LEFT, operation=context["rax"] & 0xFFFFFFFF, vector=vector)
    address = context["cr2"] if vector == PAGE_FAULT else rip
    if vector == PAGE_FAULT:
        error_code &= (
            ~_RESERVED
        )  # no table here has reserved bits; KVM may mark with them what it does not map
        if address >= _TASK_SIZE_MAX:
            error_code |= _PROTECTION  # as Linux has it: a program is not told what the kernel maps
    return Stop(Why.FAULT, vector=vector, error_code=error_code, address=address, rip=rip)


def _left_at(vector: int, error_code: int, rip: int, space: GuestSpace) -> int | None:
    """Return where a guest goes on that left by what KVM answers with an exception; None for any other exception.

    A KVM that does not look at the I/O permission bitmap at CPL 3 raises #GP for the port write. A guest that steps
    (TF) meets #DB at the exit routine's first instruction.
    """
    if vector == GENERAL_PROTECTION and not error_code and space.code(rip, 2) == OUT_INSTRUCTION:
        return rip + len(OUT_INSTRUCTION)
    if vector == DEBUG and rip == EXIT_ROUTINE:
        return EXIT_ROUTINE + len(OUT_INSTRUCTION)
    return None
