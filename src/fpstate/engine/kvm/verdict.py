"""How a guest ended, told from why it stopped."""

from __future__ import annotations

from fpstate.engine.kvm.carrier import Carrier
from fpstate.engine.kvm.guest import KvmGuest
from fpstate.engine.kvm.opcode import LONGEST, denied_component
from fpstate.engine.kvm.trap import (
    INVALID_OPCODE,
    NOT_AVAILABLE,
    SIMD_ERROR,
    X87_ERROR,
    Stop,
    Why,
    signal_of,
)
from fpstate.errors import FpStateError, PermissionRequestError
from fpstate.program.block import FINISHED, YIELD
from fpstate.vso.vcpu import Exit, ExitKind


def exit_of(stop: Stop, carrier: Carrier, guest: KvmGuest) -> Exit | None:
    """Return how a guest ended that was saved from ``carrier``; None where it goes on.

    Raises PermissionDenied where it used a component that its VSO may not use and XCR0 forbids.
    """
    match stop.why:
        case Why.UNEXPECTED:
            return Exit(ExitKind.REFUSED, rip=guest.relative(stop.rip), error=unexpected(stop, guest))
        case Why.FAULT:
            return _fault(stop, carrier, guest)
        case Why.LEFT if stop.operation != YIELD:
            kind = ExitKind.FINISHED if stop.operation == FINISHED else ExitKind.FAILED
            return Exit(kind, code=stop.operation)
    return None


def refusal(guest: KvmGuest, error: FpStateError) -> Exit:
    """Return the end of a guest whose state could not be loaded or saved."""
    rip = guest.relative(guest.context["rip"]) if guest.space else 0
    if isinstance(error, PermissionRequestError):
        return Exit(ExitKind.DENIED, code=error.component, rip=rip, error=error)
    return Exit(ExitKind.REFUSED, rip=rip, error=error)


def unexpected(stop: Stop, guest: KvmGuest) -> FpStateError:
    """Return the error for a stop that no guest should cause."""
    return FpStateError(
        f"{stop.reason or stop} at {guest.relative(stop.rip):#x}, which no guest of this engine should cause"
    )


def _fault(stop: Stop, carrier: Carrier, guest: KvmGuest) -> Exit:
    if stop.vector in (INVALID_OPCODE, NOT_AVAILABLE):  # the latter: IA32_XFD holds TILEDATA back
        manager = carrier.exchange.manager
        absent = ~manager.config.user_max.features  # what no guest here has is undefined, and not denied
        component = denied_component(guest.memory.code(stop.rip, LONGEST), guest.xcr0 | absent)
        if component is not None:
            manager.check_use(guest.vso, 1 << component)
    status, unmasked = _float_status(stop.vector, carrier.image)
    signal, code = signal_of(stop, status, unmasked)
    return Exit(
        ExitKind.FAULT,
        signal=signal,
        si_code=code,
        vector=stop.vector,
        error_code=stop.error_code,
        address=guest.relative(stop.address),
        rip=guest.relative(stop.rip),
    )


def _float_status(vector: int, image: bytearray) -> tuple[int, int]:
    """Return exception flags and which are unmasked, of the unit that raised #MF or #XM."""
    if vector == X87_ERROR:
        return int.from_bytes(image[2:4], "little"), ~int.from_bytes(image[0:2], "little")
    if vector == SIMD_ERROR:
        mxcsr = int.from_bytes(image[24:28], "little")
        return mxcsr, ~(mxcsr >> 7)
    return 0, 0
