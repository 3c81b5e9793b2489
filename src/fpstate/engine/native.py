"""The native engine: user-mode vCPUs in this process, on the real FPU.

**It runs trusted code only.** A guest shares this process's memory and may make system calls; what is kept apart
is the register state, not the memory. Code that is not trusted belongs into a virtual machine.

Guests share the thread's fs base, which is put back when they change it, and must leave gs alone. While guests run,
the thread lets in no signals but those of the engine; others wait until it looks up, every 20 ms.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from fpstate.arch.component import USER_DYNAMIC, USER_SUPPORTED, Component, mask_of, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.engine.memory import DEFAULT_MEMORY, GuestMemory
from fpstate.engine.native_exit import exit_of, rip_of
from fpstate.errors import (
    FpStateError,
    PermissionRequestError,
    PoolExhausted,
    ProgramError,
    UnsupportedHere,
    VsoError,
)
from fpstate.program.block import ENTRY_PKRU, ENTRY_RFLAGS, FAILED, Block
from fpstate.program.load import Program
from fpstate.vso.kernel_permission import request_from_kernel, shadow_stack_active
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.scheduler import RunReport
from fpstate.vso.vcpu import Exit, ExitKind
from fpstate.vso.vso import Vso, room_for

try:
    from fpstate import _core
except ImportError as _error:  # the core cannot be built everywhere; missing() says so
    _CORE_ERROR: ImportError | None = _error
else:
    _CORE_ERROR = None

RSP, RDI = 4, 7
_BUDGET_NS = 20_000_000


def missing() -> str | None:
    """Return what this machine lacks for the engine, or None where it works."""
    if _CORE_ERROR is not None:
        return f"the native core (fpstate._core) is not built: {_CORE_ERROR}"
    found = _core.features()
    if not found["xcr0"]:
        return "XSAVE is not enabled (CPUID.1:ECX[27], OSXSAVE)"
    if not found["fsgsbase"]:
        return "FSGSBASE in user mode (AT_HWCAP2 bit 1; Linux 5.9 or newer)"
    if shadow_stack_active():
        return "switching stacks under a user shadow stack (ARCH_SHSTK_STATUS), which is on in this thread"
    return None


class NativeVcpu:
    """A VSO, general registers, private memory and a program. Ended, ``exit`` tells how and ``block`` what it left."""

    def __init__(
        self, engine: NativeEngine, vso: Vso, program: Program, block: Block, memory_size: int
    ) -> None:
        self.name = program.name
        self.vso = vso
        self.exit: Exit | None = None
        self.ending: Exit | None = None
        self.block: Block | None = None
        self.engine = engine
        self.memory: GuestMemory | None = GuestMemory.place(program, block, memory_size)
        self.core = _core.Vcpu()
        start = self.memory.memory.address
        self.core.code_start, self.core.code_end = start, start + self.memory.memory.size
        self.core.rip, self.core.rflags = self.memory.entry, ENTRY_RFLAGS
        self.core.set_register(RSP, self.memory.stack_top)
        self.core.set_register(RDI, self.memory.block)
        self.core.pkru = ENTRY_PKRU
        self.core.shrink_after = engine.manager.shrink_after
        self.core.cycle_limit = engine.cycle_limit
        self.attach()

    @property
    def slices(self) -> int:
        """How often it was entered."""
        return self.core.slices

    @property
    def preemptions(self) -> int:
        """How often it was stopped in the middle."""
        return self.core.preemptions

    def attach(self) -> None:
        """Tell the core where the VSO's buffer lies now."""
        buffer = self.vso.buffer
        self.core.attach(buffer.view if buffer else None, self.vso.xfeatures)
        self.core.restore_mask = self.engine.restore_mask(self.vso)

    def end(self, exit: Exit) -> None:
        """Keep how it ended, and give state and memory back. May be called again where an interrupt cut it short."""
        if self.ending is None:
            self.ending = self._read_block(exit) if exit.kind is ExitKind.FINISHED else exit
        self.core.attach(None, 0)
        if self.vso.alive:
            self.engine.manager.free(self.vso)
        self.exit = self.ending
        self.memory = None

    def _read_block(self, exit: Exit) -> Exit:
        assert self.memory is not None
        try:
            self.block = self.memory.read_block(self.name)
        except ProgramError as error:
            return Exit(ExitKind.FAILED, code=FAILED, error=error)
        return exit


class NativeEngine:
    """Makes vCPUs and run queues for one manager.

    ``timeout`` is the processor time in seconds that each vCPU may use (None: no limit): time between its entries and
    exits in which its host thread ran, as CLOCK_THREAD_CPUTIME_ID counts. A vCPU that expires has had that time, and at
    most a 16th of it more. Where the manager's processor lacks XSAVEC, states are saved by XSAVE. Raises
    UnsupportedHere with what this machine lacks, or where the manager lays states out as another processor than this
    one does.
    """

    name = "native"
    kind = Kind.HOST

    def __init__(self, manager: Manager, *, timeout: float | None = None) -> None:
        lacking = missing()
        if lacking:
            raise UnsupportedHere(lacking, help="see: fpstate cpu")
        found = _core.features()
        self.manager = manager
        self.managed = found["managed_mask"]
        self._switched_apart = mask_of(Component.PKRU) if found["pkru"] else 0
        self.compact = manager.config.compacted
        if self.compact and not (found["xsavec"] and found["xgetbv1"]):
            raise UnsupportedHere("XSAVEC with XGETBV(1), which the manager's processor has")
        self.cycle_limit = max(1, int(timeout * _core.tsc_hz())) if timeout else 0
        self.spill_layout = self._layout(manager.config.cpu)
        if self.spill_layout != self._layout(Cpu.host()):
            raise UnsupportedHere(f"the layout of {manager.config.cpu.name}, which the manager has")

    def _layout(self, cpu: Cpu) -> Layout:
        """Where an image of everything that the core saves has its components on ``cpu``."""
        mask = self.managed & cpu.user_mask
        return (Layout.compacted if self.compact else Layout.standard)(cpu, mask)

    def offered(self, permitted: int) -> int:
        """Return the components that a program is told it may use, of a VSO with these permitted."""
        return permitted & (self.managed | self._switched_apart) & USER_SUPPORTED

    def restore_mask(self, vso: Vso) -> int:
        """Return what each entry restores: everything, so that what the VSO lacks becomes initial."""
        return self.managed

    def vcpu(
        self,
        program: Program,
        *,
        seed: int = 0,
        argument: int = 0,
        input: bytes = b"",
        kind: Kind | None = None,
        permitted: int | None = None,
        memory_size: int = DEFAULT_MEMORY,
    ) -> NativeVcpu:
        """Return a new vCPU that will run a program from its start, with a new VSO.

        Raises ProgramError when the program does not fit its memory, UnsupportedHere when this processor lacks what
        it needs, and what ``Manager.create`` raises.
        """
        lacking = program.features & ~self.managed
        if lacking:
            raise UnsupportedHere(f"{program.name} needs {mask_text(lacking)}")
        vso = self.manager.create(kind or self.kind, permitted=permitted)
        block = Block(seed=seed, argument=argument, features=self.offered(vso.permitted), input=input)
        try:
            request_from_kernel(vso.permitted & USER_DYNAMIC)
            return NativeVcpu(self, vso, program, block, memory_size)
        except BaseException:
            self.manager.free(vso)
            raise

    def queue(self) -> NativeQueue:
        """Return an empty queue for one host thread."""
        return NativeQueue(self)

    def scratch(self) -> Iterator[tuple[str, bytearray]]:
        """Yield a copy of this thread's spill area."""
        size = _core.features()["area_size"]
        copy = bytearray(size)
        _core.unspill(copy, ((0, 0, size),), False)
        yield "the spill area", copy

    def close(self) -> None:
        """Nothing is held that outlives the vCPUs."""


class NativeQueue:
    """The vCPUs of one host thread; grows, parks and ends them as the core reports."""

    def __init__(self, engine: NativeEngine, *, timing: bool = True) -> None:
        self.engine = engine
        self.core = _core.Queue(compact=engine.compact, timing=timing)
        self._members: dict[_core.Vcpu, NativeVcpu] = {}

    def __len__(self) -> int:
        return len(self.core)

    def add(self, vcpu: NativeVcpu) -> None:
        """Put a vCPU behind all others. Raises VsoError where it ended, or is in a queue already."""
        if vcpu.exit is not None:
            raise VsoError(
                f"{vcpu.name} has ended: {vcpu.exit}", help="make another vCPU to run the program again"
            )
        self.core.add(vcpu.core)
        self._members[vcpu.core] = vcpu

    def remove(self, vcpu: NativeVcpu) -> None:
        """Take a vCPU out, as it is; another queue may run it. Raises VsoError where it is not in this one."""
        self.core.remove(vcpu.core)
        del self._members[vcpu.core]

    def clear(self) -> None:
        """Take all vCPUs out."""
        for vcpu in list(self._members.values()):
            self.remove(vcpu)

    def run(self, quantum_ns: int, budget_ns: int, max_slices: int = 0) -> NativeVcpu | None:
        """Run until a vCPU ends, and return it; None when budget or slices are used up or none can run.

        A slice is no longer than the budget: limits and interrupts are looked at between slices alone. ``max_slices``
        counts from the last decision. A KeyboardInterrupt, or what another signal's handler raises,
        leaves a queue that can be run again; a vCPU that ended at that moment is told by its ``exit`` alone.
        """
        saves, switches = self.core.saves, self.core.switches
        quantum_ns = min(quantum_ns, budget_ns) if budget_ns > 0 else quantum_ns
        try:
            while True:
                core = self.core.run(quantum_ns, budget_ns, max_slices)
                if core is None:
                    return None
                vcpu = self._settle(core)
                if vcpu:
                    return vcpu
        except BaseException:
            self._recover()
            raise
        finally:
            self.engine.manager.count_switches(self.core.saves - saves, self.core.switches - switches)

    def run_slices(self, quantum_ns: int, slices: int) -> list[NativeVcpu]:
        """Run about so many slices, or until none can run; returns the vCPUs that ended."""
        ended = []
        end = self.core.switches + slices
        while len(self.core) and self.core.switches < end:
            vcpu = self.run(quantum_ns, _BUDGET_NS, end - self.core.switches)
            if vcpu:
                ended.append(vcpu)
        return ended

    def report(self) -> RunReport:
        """Return what was done so far, with the last 65536 switch times."""
        per_cycle = 1e9 / _core.tsc_hz()
        samples = self.core.samples()
        cycles = struct.unpack(f"={len(samples) // 4}I", samples)
        return RunReport(
            switches=self.core.switches,
            preemptions=self.core.preemptions,
            yields=self.core.yields,
            switch_ns=tuple(count * per_cycle for count in cycles),
        )

    def _settle(self, core: _core.Vcpu) -> NativeVcpu | None:
        """Decide about a vCPU; return it where it ended, else put it back."""
        vcpu = self._members[core]
        if self._decide(vcpu):
            self.core.add(core)
            return None
        del self._members[core]
        return vcpu

    def _recover(self) -> None:
        """Settle the vCPU that an interrupt left in no queue, from the start; the spill area is as it was."""
        for core, vcpu in list(self._members.items()):
            if core.queued:
                continue
            if self._decide(vcpu):
                vcpu.attach()  # a park that was cut short left the core with the earlier buffer
                self.core.add(core)
            else:
                del self._members[core]

    def _decide(self, vcpu: NativeVcpu) -> bool:
        """Settle what the core left open; whether the vCPU goes on."""
        if vcpu.ending:
            vcpu.end(vcpu.ending)
            return False
        try:
            if vcpu.core.spilled:
                self._grow(vcpu)
            ended = exit_of(vcpu)
            if ended is None:
                self._park_when_slack(vcpu)
                return True
        except PermissionRequestError as error:
            ended = Exit(ExitKind.DENIED, code=error.component, rip=rip_of(vcpu), error=error)
        except FpStateError as error:
            ended = Exit(ExitKind.REFUSED, rip=rip_of(vcpu), error=error)
        except MemoryError:
            exhausted = PoolExhausted(f"no memory for {mask_text(vcpu.core.in_use)} of {vcpu.name}")
            ended = Exit(ExitKind.REFUSED, rip=rip_of(vcpu), error=exhausted)
        vcpu.end(ended)
        _core.unspill(bytearray(), ())
        return False

    def _grow(self, vcpu: NativeVcpu) -> None:
        self.engine.manager.store(vcpu.vso, vcpu.core.in_use, self.engine.spill_layout, _copy_from_spill)
        vcpu.attach()
        _core.unspill(bytearray(), ())

    def _park_when_slack(self, vcpu: NativeVcpu) -> None:
        if room_for(vcpu.core.in_use) != vcpu.vso.xfeatures:
            self.engine.manager.park(vcpu.vso)
            vcpu.attach()


def _copy_from_spill(view: memoryview, moves: Sequence[tuple[int, int, int]]) -> None:
    _core.unspill(view, moves, False)
