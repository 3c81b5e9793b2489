"""One guest on one vCPU: started, stopped at any instruction, checkpointed, and gone on with elsewhere."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Self

from fpstate.arch.component import AMX, USER_DYNAMIC, USER_SUPPORTED, Component, mask_of, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.engine.kvm.abi import (
    EXIT_IO,
    REGS_SIZE,
    RUN_IO,
    RUN_UNION,
    SREGS_SIZE,
)
from fpstate.engine.kvm.arena import Arena
from fpstate.engine.kvm.checkpoint import checkpoint_of, context_for, space_for
from fpstate.engine.kvm.context import APIC_BASE, EVENTS, SREGS, Context
from fpstate.engine.kvm.cpuid import cr4_bits
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.reset import reset, reset_debug, reset_events
from fpstate.engine.kvm.space import GuestSpace
from fpstate.engine.kvm.supervisor import SHARED_SIZE, shared_pages
from fpstate.engine.kvm.ticker import Ticker, blocked_in_guests, tick_signal
from fpstate.engine.kvm.tile_denial import needs_tiles
from fpstate.engine.kvm.tile_watch import TileWatch, context_switches, xinuse_of
from fpstate.engine.kvm.transfer import LoadReport, load, save
from fpstate.engine.kvm.trap import Stop, Why, behind_breakpoint, read_stop
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine
from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.errors import PermissionDenied, PermissionRequestError, ProgramError, UnsupportedHere, VsoError
from fpstate.program.block import YIELD, Block
from fpstate.program.load import Program
from fpstate.source.checkpoint import SavedState
from fpstate.vso.config import FpuConfig
from fpstate.vso.kernel_permission import request_from_kernel
from fpstate.vso.permission import Kind

_LONGEST_SLICE = 20_000_000
_SLICES_OUT = 28
"""From 1 ns, each twice as long as the one before: half a second in all."""


class Session:
    """A machine with one vCPU, and at most one guest on it; use it in a ``with``.

    Between two guests the vCPU is reset and its registers are looked at (``reset``), so that one session can run
    many guests one after the other. Raises UnsupportedHere without a usable /dev/kvm.
    """

    def __init__(self, device: Device | None = None) -> None:
        self._own_device = device is None
        self.device = Device() if device is None else device
        self.machine: Machine | None = None
        self.arena: Arena | None = None
        self.space: GuestSpace | None = None
        self.context = Context()
        self.name = ""
        self._watch: TileWatch | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close everything; may be called again."""
        self.space = None
        if self.machine is not None:
            self.machine.close()
        if self.arena is not None:
            self.arena.close()
        if self._own_device:
            self.device.close()

    @property
    def features(self) -> int:
        """The components that a program is told it may use. Not PKRU: CR4.PKE is off, so that no loaded value of it
        keeps a program from its memory."""
        return self.destination.full_xcr0 & USER_SUPPORTED & ~mask_of(Component.PKRU)

    @property
    def _withheld(self) -> int:
        return self.destination.cpu.user_mask & AMX & ~self.features

    @property
    def has_begun(self) -> bool:
        """Whether the guest is elsewhere than at its entry."""
        return self.space is not None and self.context["rip"] != self.space.entry

    def start(
        self, program: Program, *, seed: int = 0, argument: int = 0, memory_size: int = DEFAULT_MEMORY,
        clean: bool = True,
    ) -> None:  # fmt: skip
        """Put a program at its entry, on a vCPU that was reset.

        ``clean`` False leaves floating-point registers and XCR0 as they are: for looking at what is in them. Raises
        ProgramError, KvmError, ResetIncomplete, and UnsupportedHere for a program with tiles that the processor has and
        guests do not: whether this KVM enforces that is not known here, and a state without them would be wrong.
        """
        if self._withheld and needs_tiles(program):
            raise UnsupportedHere(
                f"{program.name} needs {mask_text(AMX)}, which guests of this KVM do not have"
            )
        self._watch = TileWatch.of(program) if self._withheld else None
        block = Block(seed=seed, argument=argument, features=self.features)
        if clean:
            reset(self.vcpu, destination=self.destination)
        self._place(program, block, memory_size)
        assert self.space is not None
        self._set_context(
            Context.start(
                root=self.space.root,
                entry=self.space.entry,
                stack=self.space.stack_top,
                argument=self.space.block,
                cr4=self._cr4,
            )
        )

    def run(self, nanoseconds: int) -> Stop:
        """Run the guest for so long, or until it leaves by itself; the signals of this thread wait until then.

        A tick that comes in an exception handler, or on the way to one, counts when the guest is out of it. Raises
        UnsupportedHere where the guest had tiles that the processor has and guests do not: they are lost.
        """
        stop = self._slice(nanoseconds)
        for shift in range(_SLICES_OUT):
            if stop.why is not Why.PREEMPTED or self._between_instructions:
                return stop
            stop = self._slice(1 << shift)
        raise VsoError(f"{self.name} does not leave its exception handler")

    def finish(self, seconds: float = 10.0) -> Block:
        """Run the guest to its end and return its block. Raises VsoError where it ends by a fault or takes too long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            stop = self.run(_LONGEST_SLICE)
            if stop.why is Why.PREEMPTED or (stop.why is Why.LEFT and stop.operation == YIELD):
                continue
            if stop.why is not Why.LEFT or stop.operation:
                raise VsoError(f"{self.name} did not finish: {stop}")
            return self._guest().read_block(self.name)
        raise VsoError(f"{self.name} did not finish within {seconds} s")

    def checkpoint(self) -> SavedState:
        """Return the guest between two of its instructions; it can go on here all the same.

        Raises VsoError where it loaded segment registers, as a checkpoint has none of them; and UnsupportedHere where
        nobody can tell whether it has tiles now, which would be lost.
        """
        space = self._guest()
        if self._watch and self._watch.may_hide_tiles(space):
            raise UnsupportedHere(
                f"a look whether {self.name} has tiles, as it stands behind what may be an INT3",
                help="let it run on: it is looked at where it stops elsewhere",
            )
        state = save(self.vcpu, destination=self.destination)
        return SavedState(state, checkpoint_of(self.name, space, self.context))

    def resume(self, saved: SavedState, *, allow_loss: int = 0) -> LoadReport:
        """Load a checkpoint, so that ``run`` and ``finish`` go on with it; returns what was loaded.

        Raises ProgramError where its memory or its registers are as no guest's here can be, and what ``load`` raises.
        Where it is refused (LoadRefused, ProgramError), the guest that was here is still here.
        """
        checkpoint = saved.checkpoint
        if checkpoint is None:
            raise ProgramError("state", "it belongs to no program: there is nothing to go on with")
        assert self.arena is not None
        space = space_for(checkpoint, self.arena, self._shared)
        try:
            report = load(self.vcpu, saved.state, allow_loss=allow_loss, destination=self.destination)
        except BaseException:
            self.arena.give(space.piece)
            raise
        self._drop()
        self.space, self.name = space, checkpoint.program
        self._watch = TileWatch(None) if self._withheld else None
        for step in (reset_debug, reset_events):
            step(self.vcpu, self.destination)
        self._set_context(context_for(checkpoint, space, self._cr4))
        return report

    def _guest(self) -> GuestSpace:
        if self.space is None:
            raise VsoError("no guest is here", help="start a program, or resume a checkpoint")
        return self.space

    def _open(self) -> None:
        ask_for_dynamic()
        self.machine = Machine(self.device)
        self.arena = Arena(self.machine)
        self._shared = self.arena.take(SHARED_SIZE)
        self._shared.write(0, shared_pages())
        self.vcpu = self.machine.vcpu()
        self.destination = Destination.of(self.vcpu, supported_xcr0=self.device.supported_xcr0)
        self.destination.check_whole()
        self._tick = tick_signal()
        self.vcpu.set_signal_mask(blocked_in_guests(self._tick))
        self._cr4 = cr4_bits(self.vcpu.cpuid())

    def _place(self, program: Program, block: Block, size: int) -> None:
        self._drop()
        assert self.arena is not None
        self.space = GuestSpace.place(self.arena, self._shared, program, block, size)
        self.name = program.name

    def _drop(self) -> None:
        space, self.space = self.space, None
        if space is not None and self.arena is not None:
            self.arena.give(space.piece)

    def _enter(self) -> Stop:
        """Run once, finish what the exit left open, and read why it came."""
        space = self._guest()
        switched = context_switches() if self._watch else 0
        reason = self.vcpu.run()
        if self._watch:
            self._watch.unseen |= context_switches() != switched
        io = RUN_IO.unpack_from(self.vcpu.shared, RUN_UNION)[:4]
        if reason == EXIT_IO:
            self.vcpu.complete()
        self.context.data[:] = self.get()
        stop = read_stop(reason, io, self.context, space)
        if reason == EXIT_IO:
            self._set_context(self.context)
        if self._watch:
            self._look_for_tiles(self._watch, stop)
        return stop

    def _look_for_tiles(self, watch: TileWatch, stop: Stop) -> None:
        space = self._guest()
        if stop.why is Why.PREEMPTED and behind_breakpoint(self.context, space):
            watch.unseen = True  # the vCPU may be about to take a #BP that KVM does not tell
            return
        context = self.context
        try:
            found = xinuse_of(self, space, self._cr4, self._tick)
        finally:
            self._set_context(context)
        # XGETBV may fault where XCR0 is enforced
        xinuse = found.operation if found.why is Why.LEFT else 0
        try:
            watch.check(xinuse, space, self.name, self.features)
        except PermissionDenied as error:
            raise UnsupportedHere(str(error), help=error.help) from error

    def _slice(self, nanoseconds: int) -> Stop:
        with Ticker(self._tick) as ticker:
            ticker.arm(max(1, nanoseconds))
            return self._enter()

    @property
    def _between_instructions(self) -> bool:
        """Whether the guest is in its own code, and no exception of it waits (exception.injected of its events)."""
        return self.context.cpl == 3 and not self.context.delivering

    @property
    def kvm(self) -> KvmVcpu:
        """The vCPU, as ``xinuse_of`` names it."""
        return self.vcpu

    def get(self) -> bytearray:
        """Return the vCPU's general, segment and control registers and pending events."""
        return self.vcpu.regs() + self.vcpu.sregs() + self.vcpu.events()

    def put(self, data: bytearray) -> None:
        """Set them."""
        data[APIC_BASE] = (self.vcpu.regs() + self.vcpu.sregs())[APIC_BASE]
        self.vcpu.set_sregs(data[SREGS : SREGS + SREGS_SIZE])
        self.vcpu.set_regs(data[:REGS_SIZE])
        self.vcpu.set_events(data[EVENTS:])  # or an exception that KVM injects would meet the next guest

    def _set_context(self, context: Context) -> None:
        self.put(context.data)
        self.context = context


def ask_for_dynamic(mask: int | None = None) -> None:
    """Ask that this process's guests may have dynamic components (TILEDATA), all of this processor's if not given.

    It has to come before the process's first vCPU, since what is granted then decides about KVM_CAP_XSAVE2 and the
    guests' CPUID. Where it is refused, guests go without.
    """
    if mask is None:
        mask = FpuConfig.from_cpu(Cpu.host()).user_max.features & USER_DYNAMIC
    with contextlib.suppress(PermissionRequestError):
        request_from_kernel(mask, Kind.GUEST)
