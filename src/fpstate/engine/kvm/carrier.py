"""One KVM vCPU that carries guests in turn: a whole state in, a run, a whole state out."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

from fpstate.engine.kvm.abi import (
    EVENTS_FLAGS,
    EXIT_INTR,
    EXIT_IO,
    REGS_SIZE,
    RUN_DIRTY_REGS,
    RUN_EXIT_REASON,
    RUN_IO,
    RUN_SYNC,
    RUN_UNION,
    RUN_VALID_REGS,
    SREGS_SIZE,
    SYNC_EVENTS,
    SYNC_REGS,
    SYNC_SREGS,
    VALID_TRIPLE_FAULT,
)
from fpstate.engine.kvm.context import APIC_BASE, EVENTS, SIZE, SREGS, Context
from fpstate.engine.kvm.exchange import Exchange
from fpstate.engine.kvm.space import GuestSpace
from fpstate.engine.kvm.trap import DEBUG, Stop, Why, read_stop
from fpstate.engine.kvm.vcpu import Machine
from fpstate.vso.vso import Vso

SYNC_ALL = SYNC_REGS | SYNC_SREGS | SYNC_EVENTS
_REASON = slice(RUN_EXIT_REASON, RUN_EXIT_REASON + 4)
_DIRTY = slice(RUN_DIRTY_REGS, RUN_DIRTY_REGS + 8)
_SYNC = slice(RUN_SYNC, RUN_SYNC + SIZE)
_EVENTS_FLAGS = EVENTS + EVENTS_FLAGS
_STOPPED_EARLY = EXIT_INTR.to_bytes(4, "little")


class Carried(Protocol):
    """What a carrier needs of a guest."""

    vso: Vso
    context: Context
    xcr0: int
    pkru: int

    @property
    def memory(self) -> GuestSpace:
        """Its memory."""


class Carrier:
    """A KVM vCPU. ``image`` is what the last exchange left: the state of the guest that was loaded or saved last."""

    def __init__(
        self, machine: Machine, cpuid: bytearray, exchange: Exchange, blocked: frozenset[int]
    ) -> None:
        self.kvm = machine.vcpu(cpuid=cpuid)
        self.kvm.set_signal_mask(blocked)
        self.exchange = exchange
        self.image = bytearray(self.kvm.xsave_size)
        self.thread = 0
        self.resident: Carried | None = None
        self.xcr0 = self.kvm.xcr0()
        self.synced = machine.device.capability("KVM_CAP_SYNC_REGS") & SYNC_ALL == SYNC_ALL
        self._debugregs = self.kvm.debugregs()
        self._traced = False
        if self.synced:
            self.kvm.shared[RUN_VALID_REGS : RUN_VALID_REGS + 8] = SYNC_ALL.to_bytes(8, "little")
        self._apic_base = self._fresh_apic_base()
        # Else a shutdown that one guest was about to have would be the next one's.
        triple_fault = machine.enable("KVM_CAP_X86_TRIPLE_FAULT_EVENT")
        self._events_valid = VALID_TRIPLE_FAULT if triple_fault else 0

    def load(self, guest: Carried) -> None:
        """Put a guest's whole state into the vCPU, over all that the one before left.

        Raises KvmError where the kernel refuses it; the guest's VSO still has it then.
        """
        self.resident = None
        if guest.xcr0 != self.xcr0:
            self.kvm.set_xcr0(guest.xcr0)
            self.xcr0 = guest.xcr0
        self.exchange.load(guest.vso, self.image)
        self.exchange.put_pkru(self.image, guest.pkru)
        self.kvm.set_xsave(self.image)
        if self._traced:
            self.kvm.set_debugregs(self._debugregs)
            self._traced = False
        self.put(guest.context.data)
        self.resident = guest

    def prepare(self) -> None:
        """Before a run: were it never to begin, ``save`` would find the guest stopped at once."""
        self.kvm.shared[_REASON] = _STOPPED_EARLY

    def run(self) -> None:
        """Let the guest run until it leaves, is stopped, or fails; ``prepare`` comes first. Raises KvmError."""
        self.kvm.run()

    def save(self, guest: Carried) -> tuple[Stop, bool]:
        """Take a guest's whole state out; may be done again where it was interrupted.

        Returns why it stopped, and whether its buffer has room to spare. Raises as ``Exchange.save``.
        """
        reason = int.from_bytes(self.kvm.shared[_REASON], "little")
        io = RUN_IO.unpack_from(self.kvm.shared, RUN_UNION)[:4]
        if reason == EXIT_IO:
            self.kvm.complete()
        context = Context(self.get())
        stop = read_stop(reason, io, context, guest.memory)
        self._traced |= _may_have_traced(stop, context)
        guest.context = context
        if stop.why is not Why.PREEMPTED:
            self.resident = None  # what the vCPU has may be a handler's registers, not the guest's
        self.kvm.xsave(self.image)
        guest.pkru = self.exchange.pkru(self.image)
        return stop, self.exchange.save(guest.vso, self.image)

    def put(self, data: bytearray) -> None:
        """Set general, segment and control registers and pending events, at the latest when it is run."""
        data[APIC_BASE] = self._apic_base
        data[_EVENTS_FLAGS] |= self._events_valid
        if self.synced:
            self.kvm.shared[_SYNC] = bytes(data)
            self.kvm.shared[_DIRTY] = SYNC_ALL.to_bytes(8, "little")
        else:
            self.kvm.set_regs(data[:REGS_SIZE])
            self.kvm.set_sregs(data[SREGS : SREGS + SREGS_SIZE])
            self.kvm.set_events(data[EVENTS:])

    def get(self) -> bytearray:
        """Return them, as they were when it was last run."""
        if self.synced:
            return bytearray(self.kvm.shared[_SYNC])
        return self.kvm.regs() + self.kvm.sregs() + self.kvm.events()

    def _fresh_apic_base(self) -> bytes:
        return bytes((self.kvm.regs() + self.kvm.sregs())[APIC_BASE])


def _may_have_traced(stop: Stop, context: Context) -> bool:
    """Whether DR6 may tell of a #DB: the guest had one, or was preempted on the way to a handler or in one."""
    if stop.why is Why.PREEMPTED:
        return context.cpl != 3 or context.delivering
    return stop.vector == DEBUG


class CarrierPool:
    """Makes up to ``limit`` carriers and lends them to host threads. Thread-safe."""

    def __init__(
        self, machine: Machine, cpuid: bytearray, exchange: Exchange, blocked: frozenset[int], limit: int
    ) -> None:
        self.limit = limit
        self._machine = machine
        self._setup = (cpuid, exchange, blocked)
        self._free: deque[Carrier] = deque()
        self._made = 0
        self._changed = threading.Condition()

    @property
    def made(self) -> int:
        """How many KVM vCPUs there are."""
        return self._made

    def free_images(self) -> list[bytearray]:
        """Return what carriers hold of states that nobody has borrowed: nothing, if wiping works."""
        with self._changed:
            return [carrier.image for carrier in self._free]

    def borrow(self, wait: float) -> Carrier | None:
        """Return a carrier, or None where none is free for ``wait`` seconds.

        It is the one that this thread had before, if it can be: KVM is slow to move a vCPU to another thread.
        Raises KvmError where there cannot be another.
        """
        me = threading.get_ident()
        with self._changed:
            if not self._free and self._made < self.limit:
                self._free.append(Carrier(self._machine, *self._setup))
                self._made += 1
            if not self._changed.wait_for(lambda: self._free, wait):
                return None
            mine = next((carrier for carrier in self._free if carrier.thread == me), self._free[0])
            self._free.remove(mine)
        mine.thread = me
        return mine

    def give_back(self, carrier: Carrier) -> None:
        """Let others have a carrier; what it copied of its guests' states is wiped."""
        carrier.image[:] = bytes(len(carrier.image))
        with self._changed:
            if carrier not in self._free:
                self._free.append(carrier)
                self._changed.notify()
