"""A vCPU back in its initial configuration, and the proof: what survives is told by the name of its register.

KVM_SET_FPU resets nothing: it takes no MXCSR and does not set XSTATE_BV. KVM_SET_XSAVE resets every component that
it does not state, but PKRU, which keeps its value; so PKRU is stated, and so are x87 and SSE, for kernels that
restore the standard format and would keep an MXCSR that is not stated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from fpstate.arch.component import Component, components_in, mask_of
from fpstate.engine.kvm.abi import DEBUGREGS_SIZE, REGISTERS, REGS
from fpstate.engine.kvm.destination import Destination, StateVcpu
from fpstate.engine.kvm.transfer import read_msrs, save, write_msrs
from fpstate.errors import ResetIncomplete
from fpstate.image.difference import differences
from fpstate.image.image import Image

RFLAGS: Final = 2
"""RFLAGS behind a reset: the bit that is always set (SDM Vol. 3, table 10-1)."""
DEBUG: Final = struct.Struct("<6Q")
"""The first fields of struct kvm_debugregs: DR0 to DR3, DR6, DR7."""
DEBUG_INITIAL: Final = (0, 0, 0, 0, 0xFFFF_0FF0, 0x400)
_DEBUG_NAMES: Final = ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")
_DELIVERED: Final = slice(0, 16)
"""struct kvm_vcpu_events: exception, interrupt and nmi; a byte of each says that it is being delivered."""
_DELIVERING: Final = {"exception": (0, 1), "interrupt": (8, 9), "nmi": (12, None)}
_STATED: Final = mask_of(Component.X87, Component.SSE, Component.PKRU)


class ResetVcpu(StateVcpu, Protocol):
    """What a reset needs of a vCPU; ``KvmVcpu`` has it."""

    def regs(self) -> bytearray:
        """Return struct kvm_regs."""

    def set_regs(self, data: bytearray) -> None:
        """Set struct kvm_regs."""

    def debugregs(self) -> bytearray:
        """Return struct kvm_debugregs."""

    def set_debugregs(self, data: bytearray) -> None:
        """Set struct kvm_debugregs."""

    def events(self) -> bytearray:
        """Return struct kvm_vcpu_events."""

    def set_events(self, data: bytearray) -> None:
        """Set struct kvm_vcpu_events."""


@dataclass(frozen=True, slots=True)
class Survivor:
    """A register that is not initial.

    ``part``: its components, or ``general``, ``debug``, ``control``, ``event``, or who saw it.
    """

    name: str
    part: str
    value: int
    initial: int

    def __str__(self) -> str:
        return f"{self.name} ({self.part}) is {self.value:#x}, not {self.initial:#x}"


def reset(vcpu: ResetVcpu, *, xcr0: int | None = None, destination: Destination | None = None) -> None:
    """Give a vCPU its initial configuration, and prove it by reading all of it back.

    Every state component becomes initial, PKRU 0 (what the architecture calls initial, not an operating system's
    default); IA32_XSS, IA32_XFD, IA32_XFD_ERR and the shadow-stack MSRs 0; general registers 0, RIP 0, RFLAGS 2;
    DR0 to DR3 0, DR6 and DR7 as behind RESET; what KVM was delivering is forgotten. XCR0 becomes ``xcr0``: None
    stands for all that the guest may have, which is what an engine's guests start with; 1 is what RESET gives.
    Segment, control and other system registers are whoever's who sets up the guest's mode.

    Raises KvmError, and ResetIncomplete with the survivors.
    """
    there = Destination.of(vcpu) if destination is None else destination
    for step in STEPS:
        step(vcpu, there)
    vcpu.set_xcr0(_xcr0(there) if xcr0 is None else xcr0)
    if found := survivors(vcpu, xcr0=xcr0, destination=there):
        raise ResetIncomplete("a reset left " + "; ".join(map(str, found)), tuple(found))


def reset_components(vcpu: ResetVcpu, there: Destination) -> None:
    """Make every state component initial."""
    vcpu.set_xsave(bytearray(initial_payload(there)))


def reset_msrs(vcpu: ResetVcpu, there: Destination) -> None:
    """Clear IA32_XSS, IA32_XFD, IA32_XFD_ERR and the registers of supervisor components."""
    write_msrs(vcpu, dict.fromkeys(there.msrs, 0), there)


def reset_general(vcpu: ResetVcpu, there: Destination) -> None:
    """Clear the general registers and RIP."""
    vcpu.set_regs(bytearray(REGS.pack(*(RFLAGS if name == "rflags" else 0 for name in REGISTERS))))


def reset_debug(vcpu: ResetVcpu, there: Destination) -> None:
    """Give the debug registers what they have behind RESET, which disables all breakpoints."""
    vcpu.set_debugregs(bytearray(DEBUG.pack(*DEBUG_INITIAL).ljust(DEBUGREGS_SIZE, b"\0")))


def reset_events(vcpu: ResetVcpu, there: Destination) -> None:
    """Forget an exception or an interrupt that KVM was about to deliver: the next guest would meet it."""
    events = vcpu.events()
    events[_DELIVERED] = bytes(_DELIVERED.stop)
    vcpu.set_events(events)


STEPS: Final[tuple[Callable[[ResetVcpu, Destination], None], ...]] = (
    *(reset_msrs, reset_components, reset_general, reset_debug, reset_events),
)
"""In this order: while IA32_XFD holds a component back, KVM_SET_XSAVE does not reach it."""


def initial_payload(there: Destination) -> bytes:
    """Return what KVM_SET_XSAVE is given for a reset: x87, SSE and PKRU stated, all initial."""
    image = Image.initial(there.layout)
    for component in components_in(_STATED & there.layout.mask):
        image.store.activate(component)
    return image.to_bytes().ljust(there.xsave_size, b"\0")


def survivors(
    vcpu: ResetVcpu, *, xcr0: int | None = None, destination: Destination | None = None
) -> list[Survivor]:
    """Return what is not as ``reset`` leaves it, as the host sees it; empty where everything is."""
    there = Destination.of(vcpu) if destination is None else destination
    return list(_survivors(vcpu, there, _xcr0(there) if xcr0 is None else xcr0))


def _survivors(vcpu: ResetVcpu, there: Destination, xcr0: int) -> Iterator[Survivor]:
    state = save(vcpu, destination=there)
    initial = Image.initial(state.image.layout)
    for each in differences(state.image, initial, exact=True):
        yield Survivor(each.register, "|".join(each.components), each.a, each.b)
    if state.xcr0 != xcr0:
        yield Survivor("xcr0", "control", state.xcr0, xcr0)
    for name, value in read_msrs(vcpu, there).items():
        if value:
            yield Survivor(name, "control", value, 0)
    for name, value in zip(REGISTERS, REGS.unpack(vcpu.regs()), strict=True):
        if value != (RFLAGS if name == "rflags" else 0):
            yield Survivor(name, "general", value, RFLAGS if name == "rflags" else 0)
    debug = DEBUG.unpack_from(vcpu.debugregs())
    for name, value, right in zip(_DEBUG_NAMES, debug, DEBUG_INITIAL, strict=True):
        if value != right:
            yield Survivor(name, "debug", value, right)
    events = vcpu.events()
    for name, (at, vector) in _DELIVERING.items():
        if events[at]:
            yield Survivor(name, "event", 1 if vector is None else events[vector], 0)


def _xcr0(there: Destination) -> int:
    return there.full_xcr0
