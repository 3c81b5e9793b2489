"""Tiles that guests of a KVM do not have, found where they are used: the processor says what is in use at each exit.

Where XCR0 is not enforced at CPL 3, tile instructions run. The kernel saves such a guest without TILEDATA, at every
exit from KVM_RUN and whenever it gives the processor to another thread, and with TILECFG. So a guest that had tiles is
known by XINUSE[17], which XGETBV with ECX = 1 tells (SDM vol. 1, 13.6): a few instructions on the vCPU it ran on,
with its page tables, before its state is loaded again.

A guest that released its tiles before the exit has lost nothing to that exit, but perhaps to another thread that ran
meanwhile, or to an exit after which nobody looked. The thread's count of context switches tells whether there can have
been one. The guest's code then decides: where it does not both load tiles and read them, nothing came out wrong.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from fpstate.arch.component import AMX, Component, mask_text
from fpstate.engine.kvm.abi import EXIT_INTR, EXIT_IO, RUN_IO, RUN_UNION
from fpstate.engine.kvm.context import Context
from fpstate.engine.kvm.opcode import can_load_tiles, can_read_tiles
from fpstate.engine.kvm.space import GuestSpace
from fpstate.engine.kvm.supervisor import STACK_TOP, XINUSE_ROUTINE
from fpstate.engine.kvm.ticker import drain
from fpstate.engine.kvm.trap import Stop, read_stop
from fpstate.engine.kvm.vcpu import KvmVcpu
from fpstate.engine.memory import PAGE_SIZE, page_rights
from fpstate.errors import PermissionDenied
from fpstate.program.load import Program

_TICKS: Final = 1000
"""How many ticks may keep the routine from running: each was meant for the slice before."""
_FRAME: Final = 64
"""Bytes of the exception stack that an exception writes, at most."""
_HELP: Final = "run it with the native engine, or on a host whose KVM has AMX"


class Vcpu(Protocol):
    """A vCPU whose registers can be exchanged for those of the routine."""

    @property
    def kvm(self) -> KvmVcpu:
        """Its file descriptor and run area."""

    def put(self, data: bytearray) -> None:
        """Set general, segment and control registers and pending events."""

    def get(self) -> bytearray:
        """Return them."""


class TileWatch:
    """Looks for tiles in one guest. ``unseen``: whether tiles may have been dropped since the last look."""

    __slots__ = ("_ranges", "unseen")

    def __init__(self, program: Program | None) -> None:
        """Of a guest with this program; without one, of which nothing is known but what its registers tell."""
        looks_first = program is None or program.optional & AMX
        self._ranges = () if program is None or looks_first else tuple(_executable(program))
        self.unseen = False

    @classmethod
    def of(cls, program: Program) -> TileWatch | None:
        """Return a watch for a program's guest; None where none of its code can load tiles, nor be changed to."""
        memory = program.memory()
        if _can_change(program) or any(can_load_tiles(memory[piece]) for piece in _executable(program)):
            return cls(program)
        return None

    def check(self, xinuse: int, space: GuestSpace, name: str, has: int) -> None:
        """Raise PermissionDenied where a guest had tiles, of ``has`` components alone; ``xinuse``: at its exit."""
        if xinuse & AMX:
            found = Component.TILECFG if xinuse >> Component.TILECFG & 1 else Component.TILEDATA
            raise PermissionDenied(
                found,
                f"{name} uses {mask_text(1 << found)}, and guests of this KVM have {mask_text(has)}:"
                " tiles (TILEDATA) are dropped at each exit, and no fault tells (XINUSE, SDM vol. 1, 13.6)",
                help=_HELP,
            )
        if self.unseen and self._can_use_tiles(space):
            raise PermissionDenied(
                Component.TILECFG,
                f"{name} has instructions that load TILECFG and read TILEDATA, and guests of this KVM have"
                f" {mask_text(has)}: tiles were dropped since the last look, so what it read may be zeros",
                help=_HELP,
            )
        self.unseen = False

    def may_hide_tiles(self, space: GuestSpace) -> bool:
        """Whether a guest was not looked at after its last exit, and what can be executed now loads tiles somewhere."""
        return self.unseen and any(map(can_load_tiles, self._code(space)))

    def _can_use_tiles(self, space: GuestSpace) -> bool:
        """Whether what can be executed now loads tiles somewhere, and reads them somewhere."""
        code = self._code(space)
        return any(map(can_load_tiles, code)) and any(map(can_read_tiles, code))

    def _code(self, space: GuestSpace) -> list[bytes]:
        return [space.code(space.base + piece.start, piece.stop - piece.start) for piece in self._ranges]


def context_switches() -> int:
    """Return how often the calling thread has lost its processor (getrusage(2), ru_nvcsw and ru_nivcsw)."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_nvcsw + usage.ru_nivcsw


def xinuse_of(vcpu: Vcpu, space: GuestSpace, cr4: int, tick: int) -> Stop:
    """Return a stop with XINUSE (bits 0 to 31) of the guest that ran last on a vCPU; another where XGETBV faults.

    Its extended state stays; its registers are those of the routine afterwards. May be done again where it was
    interrupted. The exception stack is left as it was: a guest may have been stopped on the way to a handler.
    """
    frame = space.exception_frame(STACK_TOP - _FRAME, _FRAME)
    context = Context.start(root=space.root, entry=XINUSE_ROUTINE, stack=space.stack_top, argument=0, cr4=cr4)
    try:
        return _run(vcpu, context, space, lambda: drain(tick))
    finally:
        space.put_exception_frame(STACK_TOP - _FRAME, frame)


def _run(vcpu: Vcpu, context: Context, space: GuestSpace, forget_tick: Callable[[], None]) -> Stop:
    kvm = vcpu.kvm
    kvm.complete()
    vcpu.put(context.data)
    for _ in range(_TICKS):
        reason = kvm.run()
        if reason != EXIT_INTR:
            break
        forget_tick()
    io = RUN_IO.unpack_from(kvm.shared, RUN_UNION)[:4]
    if reason == EXIT_IO:
        kvm.complete()
    return read_stop(reason, io, Context(vcpu.get()), space)


def _can_change(program: Program) -> bool:
    return any(writable and executable for writable, executable in page_rights(program).values())


def _executable(program: Program) -> Iterator[slice]:
    """Yield the pieces of a program that can be executed, whole pages that lie side by side in one."""
    start = end = -1
    for page in sorted(page for page, (_, executable) in page_rights(program).items() if executable):
        if page != end:
            if end > start:
                yield slice(start * PAGE_SIZE, end * PAGE_SIZE)
            start = page
        end = page + 1
    if end > start:
        yield slice(start * PAGE_SIZE, end * PAGE_SIZE)
