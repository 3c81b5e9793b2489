"""The guests of one host thread, run in turn on KVM vCPUs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fpstate.arch.component import mask_text
from fpstate.engine.kvm.abi import EXIT_INTR
from fpstate.engine.kvm.carrier import Carrier
from fpstate.engine.kvm.guest import KvmGuest
from fpstate.engine.kvm.ticker import Ticker
from fpstate.engine.kvm.tile_watch import TileWatch, context_switches, xinuse_of
from fpstate.engine.kvm.trap import Stop, Why, behind_breakpoint
from fpstate.engine.kvm.verdict import exit_of, refusal, unexpected
from fpstate.errors import FpStateError, PermissionDenied, PoolExhausted, VsoError
from fpstate.vso.scheduler import RunReport
from fpstate.vso.vcpu import Exit, ExitKind

if TYPE_CHECKING:
    from fpstate.engine.kvm.engine import KvmEngine

_BUDGET_NS = 20_000_000
_SHORTEST_NS = 10_000
_SAMPLES = 1 << 16
_MOST_DOUBLINGS = 8
_MOST_STAYS = 8
"""How often in a row a guest keeps its KVM vCPU, for the sake of an exception that KVM would not tell."""


class KvmQueue:
    """Loads a guest, runs it for a quantum, saves it, and goes on to the next; made by ``KvmEngine.queue``."""

    def __init__(self, engine: KvmEngine) -> None:
        self.engine = engine
        self._ready: deque[KvmGuest] = deque()
        self._switches = self._preemptions = self._yields = self._saves = 0
        self._samples: deque[int] = deque(maxlen=_SAMPLES)
        self._left_at = 0

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, vcpu: KvmGuest) -> None:
        """Put a guest behind all others. Raises VsoError where it ended, or is in a queue already."""
        if vcpu.exit is not None:
            raise VsoError(
                f"{vcpu.name} has ended: {vcpu.exit}", help="make another vCPU to run the program again"
            )
        if vcpu.queued:
            raise VsoError(f"{vcpu.name} is in a queue already", help="remove it from there first")
        vcpu.queued = True
        self._ready.append(vcpu)

    def remove(self, vcpu: KvmGuest) -> None:
        """Take a guest out, as it is; another queue may run it. Raises VsoError where it is not in this one."""
        if vcpu not in self._ready:
            raise VsoError(f"{vcpu.name} is not in this queue")
        self._drop(vcpu)

    def clear(self) -> None:
        """Take all guests out."""
        for vcpu in list(self._ready):
            self.remove(vcpu)

    def run(self, quantum_ns: int, budget_ns: int, max_slices: int = 0) -> KvmGuest | None:
        """Run until a guest ends, and return it; None when budget or slices are used up or none can run.

        Signals to the thread wait until this returns. A KeyboardInterrupt, or what another signal's handler raises,
        leaves a queue that can be run again; a guest that ended at that moment is told by its ``exit`` alone.
        """
        self.engine.check_open()
        end = time.monotonic_ns() + budget_ns
        switches, saves = self._switches, self._saves
        last = self._switches + max_slices
        try:
            with Ticker(self.engine.tick) as ticker, self._shared_carrier(budget_ns) as carrier:
                while self._ready and (carrier or self.engine.each):
                    left = end - time.monotonic_ns()
                    ended = self._slice(ticker, carrier, min(quantum_ns, max(left, _SHORTEST_NS)))
                    if ended:
                        return ended
                    if self._ready[0].stays:
                        continue
                    if left <= 0 or (max_slices and self._switches >= last):
                        break
            return None
        finally:
            self._left_at = 0
            self.engine.manager.count_switches(self._saves - saves, self._switches - switches)

    def run_slices(self, quantum_ns: int, slices: int) -> list[KvmGuest]:
        """Run about so many slices, or until none can run; returns the guests that ended."""
        ended = []
        end = self._switches + slices
        while len(self) and self._switches < end:
            vcpu = self.run(quantum_ns, _BUDGET_NS, end - self._switches)
            if vcpu:
                ended.append(vcpu)
        return ended

    def report(self) -> RunReport:
        """Return what was done so far, with the last 65536 switch times."""
        return RunReport(
            switches=self._switches,
            preemptions=self._preemptions,
            yields=self._yields,
            switch_ns=tuple(map(float, self._samples)),
        )

    @contextmanager
    def _shared_carrier(self, budget_ns: int) -> Iterator[Carrier | None]:
        """Borrow a KVM vCPU for all guests; none where each has its own, or none is free in time."""
        carrier = None if self.engine.each else self.engine.carriers.borrow(budget_ns / 1e9)
        try:
            yield carrier
        finally:
            if carrier:
                self.engine.carriers.give_back(carrier)

    def _slice(self, ticker: Ticker, shared: Carrier | None, quantum_ns: int) -> KvmGuest | None:
        """Run the first guest once; return it where it ended, else put it behind the others."""
        guest = self._ready[0]
        try:
            if not guest.ending:  # else an interrupt came before it was out of the queue
                self._attempt(ticker, shared, guest, quantum_ns)
            return self._conclude(guest)
        except BaseException:
            self._recover(shared or guest.carrier, guest)
            raise

    def _attempt(self, ticker: Ticker, shared: Carrier | None, guest: KvmGuest, quantum_ns: int) -> None:
        """Load, run and save a guest; it ends where that fails."""
        try:
            carrier = shared or self._own_carrier(guest)
            self._enter(ticker, carrier, guest, quantum_ns)
            self._settle(carrier, guest)
        except FpStateError as error:
            guest.decide(refusal(guest, error))
        except MemoryError:
            exhausted = PoolExhausted(f"no memory for {mask_text(guest.vso.in_use)} of {guest.name}")
            guest.decide(Exit(ExitKind.REFUSED, error=exhausted))

    def _enter(self, ticker: Ticker, carrier: Carrier, guest: KvmGuest, quantum_ns: int) -> None:
        if guest.entered:
            raise VsoError(f"{guest.name} was interrupted while its state was saved after an interrupt")
        kept = guest.stays or (self.engine.each and self.engine.keeps_residents)
        if carrier.resident is not guest or guest.changed or not kept:
            carrier.load(guest)
            guest.changed = False
        quantum_ns <<= min(guest.stalls, _MOST_DOUBLINGS)
        ticker.arm(quantum_ns)
        guest.slices += 1
        self._switches += 1
        started = time.perf_counter_ns()
        if self._left_at:
            self._samples.append(started - self._left_at)
        carrier.prepare()
        guest.saved = None
        guest.entered = True
        switched = context_switches() if guest.watch else 0
        ran = time.thread_time_ns()
        try:
            carrier.run()
        finally:
            # What goes much beyond the tick was not the guest's: KVM did something for it first.
            guest.used_ns += min(time.thread_time_ns() - ran, 2 * quantum_ns)
            self._left_at = time.perf_counter_ns()
            if carrier.kvm.exit_reason == EXIT_INTR:
                ticker.forget()
            if guest.watch:
                guest.watch.unseen |= context_switches() != switched

    def _settle(self, carrier: Carrier, guest: KvmGuest) -> None:
        """Save a guest that was entered, and decide whether it ended; may be done again from the start."""
        before = guest.context.general
        if guest.saved is None:  # else an interrupt came after it, and the KVM vCPU may have other registers
            guest.saved = carrier.save(guest)
            self._saves += 1
        stop, slack = guest.saved
        # Entering takes longer than a short quantum where KVM has page tables to shadow: each needs time to get on.
        stalled = stop.why is Why.PREEMPTED and guest.context.general == before
        guest.stalls = guest.stalls + 1 if stalled else 0
        staying = stop.why is Why.PREEMPTED and behind_breakpoint(guest.context, guest.memory)
        guest.stays = guest.stays + 1 if staying and guest.stays < _MOST_STAYS else 0
        guest.slack = guest.slack + 1 if slack else 0
        if guest.watch and stop.why is not Why.UNEXPECTED:
            self._look_for_tiles(guest.watch, carrier, guest)
        ended = self._exit_of(stop, carrier, guest)
        if ended:
            guest.decide(ended)
        guest.entered = False
        shrink_after = self.engine.manager.shrink_after
        if not ended and shrink_after and guest.slack >= shrink_after:
            self.engine.manager.park(guest.vso)
            guest.slack = 0

    def _look_for_tiles(self, watch: TileWatch, carrier: Carrier, guest: KvmGuest) -> None:
        """Raise PermissionDenied where a guest has used tiles that this KVM does not keep.

        One that stays on its KVM vCPU is not looked at: that would lose the #BP. It may release its tiles before the
        next look, and this exit dropped them: its code then decides.
        """
        if guest.stays:
            watch.unseen = True
            return
        resident, carrier.resident = carrier.resident, None
        found = xinuse_of(carrier, guest.memory, guest.context["cr4"], self.engine.tick)
        carrier.put(guest.context.data)
        carrier.resident = resident
        if found.why is not Why.LEFT:
            raise unexpected(found, guest)
        try:
            watch.check(found.operation, guest.memory, guest.name, self.engine.managed)
        except PermissionDenied:
            self.engine.manager.count_denial()
            raise

    def _conclude(self, guest: KvmGuest) -> KvmGuest | None:
        if guest.ending:
            guest.end()
            self._drop(guest)
            return guest
        if not guest.stays:
            self._ready.rotate(-1)
        return None

    def _recover(self, carrier: Carrier | None, guest: KvmGuest) -> None:
        """Settle a guest in the midst of which an exception came; its KVM vCPU still has its state."""
        if guest.entered and not guest.ending and carrier:
            try:
                self._settle(carrier, guest)
            except FpStateError as error:
                guest.decide(refusal(guest, error))
        if guest.ending:
            guest.end()
            self._drop(guest)

    def _drop(self, guest: KvmGuest) -> None:
        """Take a guest out; may be called again where it was cut short."""
        if guest in self._ready:
            self._ready.remove(guest)
        guest.queued = False

    def _own_carrier(self, guest: KvmGuest) -> Carrier:
        if guest.carrier is None:
            guest.carrier = self.engine.carriers.borrow(0)
        if guest.carrier is None:
            limit = self.engine.carriers.limit
            raise PoolExhausted(f"no KVM vCPU for {guest.name}: a virtual machine has at most {limit} here")
        return guest.carrier

    def _exit_of(self, stop: Stop, carrier: Carrier, guest: KvmGuest) -> Exit | None:
        ended = exit_of(stop, carrier, guest)
        if ended:
            return ended
        if stop.why is Why.LEFT:
            self._yields += 1
        else:
            guest.preemptions += 1
            self._preemptions += 1
        if self.engine.limit_ns and guest.used_ns > self.engine.limit_ns:
            return Exit(ExitKind.EXPIRED, rip=guest.relative(guest.context["rip"]))
        return None
