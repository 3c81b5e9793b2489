"""A guest's private memory: the stack lowest, above it the program, above that the guest block.

A stack that grows too far meets the guard page below it, not the program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fpstate.errors import ProgramError
from fpstate.program.block import BLOCK_SIZE, ENTRY_RSP_MODULO, STACK_MINIMUM, Block
from fpstate.program.load import Program

if TYPE_CHECKING:
    from fpstate._core import Memory

PAGE_SIZE = 4096
DEFAULT_MEMORY = 64 * 1024
WORD = 8


def pages(size: int) -> int:
    """Return the bytes of the whole pages that ``size`` bytes take."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Memory with a program and a block in it, and the addresses at which the guest starts."""

    memory: Memory
    base: int
    entry: int
    block: int
    stack_top: int

    @classmethod
    def place(cls, program: Program, block: Block, size: int = DEFAULT_MEMORY) -> GuestMemory:
        """Map ``size`` bytes (rounded up to pages) and put a program and its block there.

        Raises ProgramError when stack, program and block do not fit.
        """
        size = pages(size)
        program_size = pages(program.size)
        stack_size = room_for_stack(program, size)
        from fpstate._core import Memory

        memory = Memory(size)
        base = memory.address + stack_size
        memory.write(stack_size, program.memory())
        memory.write(stack_size + program_size, block.to_bytes())
        _protect(memory, program, stack_size)
        return cls(
            memory=memory,
            base=base,
            entry=base + program.entry,
            block=base + program_size,
            stack_top=base - 2 * WORD + ENTRY_RSP_MODULO,
        )

    def read_block(self, name: str) -> Block:
        """Read the block back. Raises ProgramError where the program spoilt it."""
        return Block.from_bytes(self.memory.read(self.block - self.memory.address, BLOCK_SIZE), program=name)

    def relative(self, address: int) -> int:
        """Return an address as an offset from the program's base where it lies in this memory, else as it is."""
        inside = self.memory.address <= address < self.memory.address + self.memory.size
        return address - self.base if inside else address


def room_for_stack(program: Program, size: int) -> int:
    """Return the bytes that program and block leave of ``size``, whole pages; raises ProgramError for too few."""
    stack_size = size - pages(program.size) - BLOCK_SIZE
    if stack_size < STACK_MINIMUM:
        program.check_fits(max(0, size - BLOCK_SIZE - STACK_MINIMUM))
        raise ProgramError(program.name, f"does not fit into {size} bytes with its stack and its block")
    return stack_size


def page_rights(program: Program) -> dict[int, tuple[bool, bool]]:
    """Return for each page of a program whether it is writable, executable; one that two segments share is either."""
    rights: dict[int, tuple[bool, bool]] = {}
    for segment in program.segments:
        first, end = segment.offset // PAGE_SIZE, -(-(segment.offset + segment.memory_size) // PAGE_SIZE)
        for page in range(first, end):
            writable, executable = rights.get(page, (False, False))
            rights[page] = (writable or segment.writable, executable or segment.executable)
    return rights


def _protect(memory: Memory, program: Program, start: int) -> None:
    for page, (writable, executable) in page_rights(program).items():
        memory.protect(start + page * PAGE_SIZE, PAGE_SIZE, writable, executable)
