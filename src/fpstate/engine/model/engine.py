"""The model engine: scripted contexts on processors in software, switched by a model of the kernel.

It is for components that the processor here does not have. Time is counted in steps: ``STEP_NS`` of a quantum or
a time limit are one step, so that a run is the same each time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from fpstate.arch.component import INDEPENDENT, components_in
from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.engine.model.behaviour import Behaviour
from fpstate.engine.model.context import ModelVcpu
from fpstate.engine.model.fault import X87_ERROR
from fpstate.engine.model.kernel import Kernel
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.engine.model.script import Script, Setting
from fpstate.engine.model.task import Task
from fpstate.engine.model.virtual_machine import create_vcpu, enter_guest, leave_guest, set_cpuid
from fpstate.errors import (
    FpStateError,
    PermissionRequestError,
    PoolExhausted,
    ProcessorFault,
    UnsupportedHere,
    VsoError,
)
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.scheduler import RunReport
from fpstate.vso.vcpu import Exit, ExitKind

STEP_NS: Final = 10_000
"""Nanoseconds of a quantum, and of a time limit, that one step stands for."""
_BUDGET_NS: Final = 20_000_000
_SIGNALS: Final = {6: "SIGILL", 7: "SIGILL", 13: "SIGSEGV", 14: "SIGSEGV", X87_ERROR: "SIGFPE", 17: "SIGBUS"}


def missing() -> str | None:
    """Return what this machine lacks for the engine, or None where it works: buffers come from the native core."""
    try:
        import fpstate._core  # noqa: F401
    except ImportError as error:
        return f"the native core (fpstate._core) is not built: {error}"
    return None


class ModelEngine:
    """Makes scripted contexts and run queues for one manager, whatever its processor.

    ``timeout``: seconds that each context may use, in steps of ``STEP_NS`` (None: no limit). ``behaviour``: what the
    processor does where processors differ (None: as its vendor's do). Raises UnsupportedHere without the native core.
    """

    name = "model"
    kind = Kind.HOST

    def __init__(
        self, manager: Manager, *, timeout: float | None = None, behaviour: Behaviour | None = None
    ) -> None:
        lacking = missing()
        if lacking:
            raise UnsupportedHere(lacking)
        self.manager = manager
        config = manager.config
        self.kernel = Kernel(config.cpu, processors=0, pool=manager.pool, behaviour=behaviour, config=config)
        self.managed = config.kernel_max.features | config.independent_features
        self.step_limit = max(1, int(timeout * 1e9) // STEP_NS) if timeout else 0

    def offered(self, permitted: int) -> int:
        """Return the components that a script may use, of a VSO with these permitted."""
        return permitted & self.managed

    def registers(self) -> KernelRegisters:
        """Return the registers of one more processor."""
        return KernelRegisters(self.manager.config, self.kernel.behaviour)

    def vcpu(
        self,
        program: Script,
        *,
        seed: int = 0,
        argument: int = 0,
        input: bytes = b"",
        kind: Kind | None = None,
        permitted: int | None = None,
        memory_size: int = DEFAULT_MEMORY,
    ) -> ModelVcpu:
        """Return a new context that will run a script, with a new VSO; ``input`` and ``memory_size`` mean nothing here.

        Raises UnsupportedHere where the processor lacks what it needs or where it is for the other kind, and what
        ``Manager.create`` and ``Manager.request`` raise.
        """
        kind = kind or program.kind or self.kind
        if program.kind not in (None, kind):
            raise UnsupportedHere(f"{program.name} in a {kind.value}: it is for a {program.kind.value}")
        lacking = program.missing(self.managed)
        if lacking:
            raise UnsupportedHere(
                f"{program.name} needs {lacking}, which {self.manager.config.cpu.name} lacks"
            )
        allowed = self.managed if permitted is None else permitted
        make = self._guest if kind is Kind.GUEST else self._host
        task, features = make(program, allowed & ~program.denied)
        setting = Setting(self.manager.config.cpu, features, kind, seed, argument)
        return ModelVcpu(self.kernel, task, program, setting)

    def queue(self) -> ModelQueue:
        """Return an empty queue for one host thread; it has a modelled processor of its own."""
        return ModelQueue(self)

    def scratch(self) -> Iterator[tuple[str, bytes]]:
        """States pass through no memory that outlives a switch."""
        return iter(())

    def close(self) -> None:
        """There is nothing to give back."""

    def _host(self, script: Script, allowed: int) -> tuple[Task, int]:
        dynamic = self.manager.config.init_xfd & allowed if script.asks else 0
        for component in components_in(dynamic):
            self.manager.request(component)
        task = Task.start(script.name, self.manager, permitted=allowed & ~INDEPENDENT)
        task.records_branches = script.branches and bool(self.managed & allowed & INDEPENDENT)
        branches = INDEPENDENT if task.records_branches else 0
        return task, task.fpu.fpstate.xfeatures | dynamic | branches

    def _guest(self, script: Script, allowed: int) -> tuple[Task, int]:
        """Guest permission is asked for before the first guest, whichever script that runs."""
        dynamic = self.manager.config.init_xfd & self.manager.permissions.policy
        if not self.manager.permissions.guest_frozen:
            for component in components_in(dynamic):
                self.manager.request(component, Kind.GUEST)
        task = Task.start(script.name, self.manager)
        guest = create_vcpu(self.kernel, task, permitted=allowed)
        if script.asks and dynamic & allowed:
            set_cpuid(self.kernel, task, dynamic & allowed)
        assert task.vm is not None
        return task, guest.xfeatures & (task.vm.xcr0 | task.vm.xss)


class ModelQueue:
    """The contexts of one host thread on one modelled processor, round robin."""

    def __init__(self, engine: ModelEngine) -> None:
        self.engine = engine
        self.kernel = engine.kernel
        self.core = engine.kernel.add_core(engine.registers())
        self._members: deque[ModelVcpu] = deque()
        self.switches = self.preemptions = self.yields = 0

    def __len__(self) -> int:
        return len(self._members)

    def add(self, vcpu: ModelVcpu) -> None:
        """Put a context behind all others. Raises VsoError where it ended, or is in this queue already."""
        if vcpu.exit is not None or vcpu in self._members:
            raise VsoError(
                f"{vcpu.name} has ended: {vcpu.exit}" if vcpu.exit else f"{vcpu.name} is in the queue"
            )
        self._members.append(vcpu)

    def clear(self) -> None:
        """Take all contexts out, as they are."""
        self._members.clear()

    def run(self, quantum_ns: int, budget_ns: int, max_slices: int = 0) -> ModelVcpu | None:
        """Run until a context ends, and return it; None when budget or slices are used up or none can run.

        What an interrupt raises leaves a queue that can be run again.
        """
        deadline, first = time.monotonic_ns() + budget_ns, self.switches
        steps = max(1, quantum_ns // STEP_NS)
        while self._members and time.monotonic_ns() < deadline:
            if max_slices and self.switches - first >= max_slices:
                break
            vcpu = self._members.popleft()
            try:
                ended = self._slice(vcpu, steps)
            except BaseException:
                self._members.appendleft(vcpu)
                raise
            if ended is None:
                self._members.append(vcpu)
                continue
            vcpu.finish(ended)
            return vcpu
        return None

    def run_slices(self, quantum_ns: int, slices: int) -> list[ModelVcpu]:
        """Run so many slices, or until none can run; returns the contexts that ended."""
        ended, end = [], self.switches + slices
        while self._members and self.switches < end:
            vcpu = self.run(quantum_ns, _BUDGET_NS, end - self.switches)
            if vcpu:
                ended.append(vcpu)
        return ended

    def report(self) -> RunReport:
        """Return what was done so far; switches in a model have no times worth telling."""
        return RunReport(self.switches, self.preemptions, self.yields)

    def _slice(self, vcpu: ModelVcpu, steps: int) -> Exit | None:
        """Switch a context in, run it, and switch it out; how it ended, or None where it goes on."""
        before = vcpu.vso.size
        try:
            self._enter(vcpu)
            ended = self._steps(vcpu, steps)
            if ended:
                self.kernel.end(vcpu.task)
                return ended
            self.kernel.switch(self.core, None)
        except (FpStateError, MemoryError) as error:
            return self._killed(vcpu, error)
        vcpu.saves += 1
        self.engine.manager.count_switches(1, 1)
        if self.engine.manager.shrink_after and vcpu.saves % self.engine.manager.shrink_after == 0 and before:
            self.engine.manager.park(vcpu.vso)
        return None

    def _enter(self, vcpu: ModelVcpu) -> None:
        self.switches += 1
        vcpu.slices += 1
        self.kernel.switch(self.core, vcpu.task)
        if vcpu.is_guest:
            enter_guest(self.kernel, self.core)

    def _steps(self, vcpu: ModelVcpu, steps: int) -> Exit | None:
        """A yielding guest leaves to its host; a preempted one is switched out with its state swapped in."""
        for _ in range(steps):
            if vcpu.at == len(vcpu.steps):
                return Exit(ExitKind.FINISHED)
            if self.engine.step_limit and vcpu.at >= self.engine.step_limit:
                return Exit(ExitKind.EXPIRED, rip=vcpu.at)
            if vcpu.perform(self.core):
                self.yields += 1
                if vcpu.is_guest:
                    leave_guest(self.kernel, self.core)
                return None
        self.preemptions += 1
        vcpu.preemptions += 1
        return None

    def _killed(self, vcpu: ModelVcpu, error: FpStateError | MemoryError) -> Exit:
        """End a context for what it did, or for what there is no memory for; ``rip`` is the number of the step."""
        reason = error if isinstance(error, FpStateError) else PoolExhausted(f"no memory for {vcpu.name}")
        if self.core.current is vcpu.task:
            self.kernel.kill(self.core, reason)
        elif vcpu.task.killed is None:
            vcpu.task.killed = reason
            self.kernel.end(vcpu.task)
        if isinstance(reason, PermissionRequestError):
            return Exit(ExitKind.DENIED, code=reason.component, rip=vcpu.at + 1, error=reason)
        if isinstance(reason, ProcessorFault):
            signal = _SIGNALS.get(reason.vector, "SIGSEGV")
            return Exit(ExitKind.FAULT, signal=signal, vector=reason.vector, rip=vcpu.at + 1, error=reason)
        return Exit(ExitKind.REFUSED, rip=vcpu.at + 1, error=reason)
