"""A guest of the KVM engine: a VSO, registers, memory of its own and a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fpstate.engine.kvm.context import Context
from fpstate.engine.kvm.space import GuestSpace
from fpstate.errors import ProgramError
from fpstate.program.block import ENTRY_PKRU, FAILED, Block
from fpstate.program.load import Program
from fpstate.vso.vcpu import Exit, ExitKind
from fpstate.vso.vso import Vso

if TYPE_CHECKING:
    from fpstate.engine.kvm.carrier import Carrier
    from fpstate.engine.kvm.engine import KvmEngine
    from fpstate.engine.kvm.tile_watch import TileWatch
    from fpstate.engine.kvm.trap import Stop


class KvmGuest:
    """Made by ``KvmEngine.vcpu``. Ended, ``exit`` tells how and ``block`` what it left."""

    def __init__(self, engine: KvmEngine, vso: Vso, program: Program, space: GuestSpace, cr4: int) -> None:
        self.name = program.name
        self.vso = vso
        self.exit: Exit | None = None
        self.ending: Exit | None = None
        self.block: Block | None = None
        self.engine = engine
        self.space: GuestSpace | None = space
        self.context = Context.start(
            root=space.root, entry=space.entry, stack=space.stack_top, argument=space.block, cr4=cr4
        )
        self.xcr0 = engine.xcr0_for(vso)
        self.pkru = ENTRY_PKRU
        self.carrier: Carrier | None = None
        self.queued = False
        self.entered = False
        self.changed = True
        self.slices = 0
        self.preemptions = 0
        self.slack = 0
        self.stalls = 0
        self.stays = 0
        self.used_ns = 0
        self.saved: tuple[Stop, bool] | None = None
        """What ``Carrier.save`` said of the last slice, until it is settled."""
        self.watch: TileWatch | None = None

    @property
    def memory(self) -> GuestSpace:
        """Its memory, until it ends."""
        assert self.space is not None
        return self.space

    def attach(self) -> None:
        """Load the VSO's state before the next run, also where a KVM vCPU has it already."""
        self.changed = True

    def relative(self, address: int) -> int:
        """Return an address counted from the program's base where it lies in the guest's memory."""
        return self.memory.relative(address)

    def decide(self, exit: Exit) -> None:
        """Keep how it ended; the first decision stays."""
        if self.ending is None:
            self.ending = self._read_block(exit) if exit.kind is ExitKind.FINISHED else exit

    def end(self) -> None:
        """Give state, memory and KVM vCPU back. May be called again where it was cut short."""
        assert self.ending is not None
        if self.carrier:
            self.carrier.resident = None
            self.engine.carriers.give_back(self.carrier)
            self.carrier = None
        if self.vso.alive:
            self.engine.manager.free(self.vso)
        if self.space:
            self.engine.arena.give(self.space.piece)
        self.exit = self.ending
        self.space = None

    def _read_block(self, exit: Exit) -> Exit:
        try:
            self.block = self.memory.read_block(self.name)
        except ProgramError as error:
            return Exit(ExitKind.FAILED, code=FAILED, error=error)
        return exit
