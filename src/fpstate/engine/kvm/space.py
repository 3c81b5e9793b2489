"""A guest's own memory: page tables, exception stack, and the stack, program and block that it sees."""

from __future__ import annotations

from dataclasses import dataclass

from fpstate.engine.kvm.arena import Arena, Piece
from fpstate.engine.kvm.paging import NO_EXECUTE, USER, WRITABLE, Mapping, page_tables, table_pages
from fpstate.engine.kvm.supervisor import EXIT_CODE, EXIT_ROUTINE, STACK_PAGE, mappings
from fpstate.engine.memory import PAGE_SIZE, WORD, page_rights, pages, room_for_stack
from fpstate.errors import PoolExhausted, ProgramError
from fpstate.program.block import BLOCK_SIZE, ENTRY_RSP_MODULO, Block
from fpstate.program.load import Program

START = 1 << 20
"""The virtual address of the lowest byte of the stack."""
MEMORY_MAXIMUM = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class GuestSpace:
    """One guest's memory and the addresses at which it starts; no other guest's tables map it."""

    piece: Piece
    own: int
    """Offset in the piece of what the guest sees at START; the exception stack is the page below."""
    size: int
    base: int
    entry: int
    block: int
    stack_top: int

    @classmethod
    def place(cls, arena: Arena, shared: Piece, program: Program, block: Block, size: int) -> GuestSpace:
        """Take memory for a guest with ``size`` bytes (rounded up to pages), and put a program and its block there.

        Raises ProgramError when stack, program and block do not fit, PoolExhausted when there is no memory for it, and
        KvmError.
        """
        try:
            return cls._place(arena, shared, program, block, size)
        except (MemoryError, OSError) as error:
            raise PoolExhausted(
                f"no memory for a guest of {size} bytes: {error or 'out of memory'}"
            ) from error

    @classmethod
    def _place(cls, arena: Arena, shared: Piece, program: Program, block: Block, size: int) -> GuestSpace:
        size = pages(size)
        stack_size = room_for_stack(program, size)
        if size > MEMORY_MAXIMUM:
            raise ProgramError(
                program.name, f"{size} bytes of memory; KVM guests have at most {MEMORY_MAXIMUM}"
            )
        tables = table_pages(_mappings(shared, 0, program, stack_size, size)) * PAGE_SIZE
        own = tables + PAGE_SIZE
        code, last = program.memory(), block.to_bytes()  # what they refuse, before there is memory to lose
        piece = arena.take(own + size)
        physical = piece.guest_address
        piece.write(0, page_tables(_mappings(shared, physical + tables, program, stack_size, size), physical))
        base = START + stack_size
        piece.write(own + stack_size, code)
        piece.write(own + size - BLOCK_SIZE, last)
        return cls(
            piece=piece,
            own=own,
            size=size,
            base=base,
            entry=base + program.entry,
            block=START + size - BLOCK_SIZE,
            stack_top=base - 2 * WORD + ENTRY_RSP_MODULO,
        )

    @property
    def root(self) -> int:
        """The guest-physical address of the page tables: CR3."""
        return self.piece.guest_address

    def read_block(self, name: str) -> Block:
        """Read the block back. Raises ProgramError where the program spoilt it."""
        return Block.from_bytes(self.piece.read(self.own + self.size - BLOCK_SIZE, BLOCK_SIZE), program=name)

    def exception_frame(self, address: int, size: int) -> bytes:
        """Return bytes of the exception stack."""
        return self.piece.read(self.own - PAGE_SIZE + address - STACK_PAGE, size)

    def put_exception_frame(self, address: int, data: bytes) -> None:
        """Write bytes of the exception stack."""
        self.piece.write(self.own - PAGE_SIZE + address - STACK_PAGE, data)

    def code(self, address: int, size: int) -> bytes:
        """Return up to ``size`` bytes of what the guest executes at an address; none where it has no memory."""
        if address >= EXIT_ROUTINE and address < EXIT_ROUTINE + PAGE_SIZE:
            return EXIT_CODE[address - EXIT_ROUTINE :][:size]
        offset = address - START
        return (
            self.piece.read(self.own + offset, min(size, self.size - offset))
            if 0 <= offset < self.size
            else b""
        )

    def relative(self, address: int) -> int:
        """Return an address as an offset from the program's base where it lies in this memory, else as it is."""
        return address - self.base if START <= address < START + self.size else address


def _mappings(shared: Piece, stack: int, program: Program, stack_size: int, size: int) -> list[Mapping]:
    """Return the guest's mappings; its own memory lies behind the exception stack at ``stack``."""
    own = stack + PAGE_SIZE
    found = list(mappings(shared, stack))
    found.append(Mapping(START, own, size, USER | WRITABLE | NO_EXECUTE))
    for page, (writable, executable) in page_rights(program).items():
        at = stack_size + page * PAGE_SIZE
        flags = USER | writable * WRITABLE | (not executable) * NO_EXECUTE
        found.append(Mapping(START + at, own + at, PAGE_SIZE, flags))
    return found
