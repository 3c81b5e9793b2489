"""A guest that stands still as a checkpoint, and a checkpoint as a guest that can go on."""

from __future__ import annotations

from typing import Final

from fpstate.engine.kvm.arena import Arena, Piece
from fpstate.engine.kvm.context import Context, foreign_flags
from fpstate.engine.kvm.space import START, GuestSpace
from fpstate.errors import ProgramError, VsoError
from fpstate.program.block import Block
from fpstate.program.load import Program, Segment
from fpstate.source.checkpoint import GENERAL, Checkpoint, GeneralRegisters, pieces_of

_SELECTORS: Final = Context.start(root=0, entry=0, stack=0, argument=0, cr4=0).selectors
_LOWER_HALF: Final = 1 << 47
_ADDRESSES: Final = 1 << 64


def checkpoint_of(name: str, space: GuestSpace, context: Context) -> Checkpoint:
    """Return a guest between two of its instructions, without its floating-point state.

    Raises VsoError where it loaded segment registers: a checkpoint has none of them.
    """
    if own := sorted(context.selectors.items() - _SELECTORS.items()):
        loaded = ", ".join(f"{register} {selector:#x}" for register, selector in own)
        raise VsoError(f"{name} loaded {loaded}, and no checkpoint has segment registers")
    block = space.read_block(name)
    return Checkpoint(
        program=name,
        seed=block.seed,
        argument=block.argument,
        features=block.features,
        memory_start=START,
        memory_size=space.size,
        base=space.base,
        block=space.block,
        registers=GeneralRegisters(
            tuple(context[register] for register in GENERAL),
            *(context["rip"], context["rflags"], context.base("fs"), context.base("gs")),
        ),
        memory=pieces_of(START, space.piece.read(space.own, space.size)),
    )


def space_for(checkpoint: Checkpoint, arena: Arena, shared: Piece) -> GuestSpace:
    """Place a checkpoint's memory; raises ProgramError where no guest here could be as it is."""
    _check_registers(checkpoint)
    size = checkpoint.block - checkpoint.base
    if not 0 < size <= checkpoint.memory_size:
        raise ProgramError(
            checkpoint.program, f"its block at {checkpoint.block:#x} does not lie behind its code"
        )
    room = Program(checkpoint.program, (Segment(0, b"", size, writable=True, executable=True),), 0)
    space = GuestSpace.place(arena, shared, room, Block(), checkpoint.memory_size)
    if (START, space.base, space.block) != (checkpoint.memory_start, checkpoint.base, checkpoint.block):
        arena.give(space.piece)
        raise ProgramError(checkpoint.program, "its memory begins elsewhere than guests have it here")
    space.piece.write(space.own, checkpoint.memory_bytes())
    return space


def context_for(checkpoint: Checkpoint, space: GuestSpace, cr4: int) -> Context:
    """Return the registers with which a checkpoint goes on in the memory that was placed for it."""
    registers = checkpoint.registers
    context = Context.start(root=space.root, entry=registers.rip, stack=0, argument=0, cr4=cr4)
    for name, value in zip(GENERAL, registers.general, strict=True):
        context[name] = value
    context["rflags"] = registers.rflags
    context.set_base("fs", registers.fs_base)
    context.set_base("gs", registers.gs_base)
    return context


def _check_registers(checkpoint: Checkpoint) -> None:
    """Refuse registers that no guest can have: KVM takes some of them, and the processor then refuses to enter."""
    registers = checkpoint.registers
    if foreign := foreign_flags(registers.rflags):
        raise ProgramError(
            checkpoint.program, f"RFLAGS has {foreign:#x}, which no guest here can have set or cleared"
        )
    for name in ("rip", "fs_base", "gs_base"):
        address = getattr(registers, name)
        if _LOWER_HALF <= address < _ADDRESSES - _LOWER_HALF:
            raise ProgramError(checkpoint.program, f"{name} {address:#x} is no canonical address")
