"""What a guest needs beyond its floating-point state to go on elsewhere: general registers, memory, program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fpstate.source.guest_state import GuestState

GENERAL: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
"""The general registers in the order of their encoding."""
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class GeneralRegisters:
    """The 16 general registers in the order of ``GENERAL``, and what else says where a guest is."""

    general: tuple[int, ...] = (0,) * len(GENERAL)
    rip: int = 0
    rflags: int = 2
    fs_base: int = 0
    gs_base: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a guest's memory and the address where they begin; what no piece holds is zeros."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A guest between two instructions.

    ``program`` names it; ``seed``, ``argument`` and ``features`` are those of its guest block. Addresses are the
    guest's: memory begins at ``memory_start`` and has ``memory_size`` bytes, the program is loaded at ``base``, the
    block lies at ``block``.
    """

    program: str
    seed: int
    argument: int
    features: int
    memory_start: int
    memory_size: int
    base: int
    block: int
    registers: GeneralRegisters
    memory: tuple[Piece, ...]

    def memory_bytes(self) -> bytes:
        """Return all of the memory, ``memory_size`` bytes."""
        memory = bytearray(self.memory_size)
        for piece in self.memory:
            start = piece.address - self.memory_start
            memory[start : start + len(piece.data)] = piece.data
        return bytes(memory)


@dataclass(frozen=True, slots=True)
class SavedState:
    """What one file holds: a whole state, and the checkpoint of the guest it belongs to where there is one."""

    state: GuestState
    checkpoint: Checkpoint | None = None


def pieces_of(start: int, memory: bytes | bytearray | memoryview) -> tuple[Piece, ...]:
    """Return the pages of a memory that are not all zeros, neighbours joined."""
    return tuple(_pieces(start, bytes(memory)))


def _pieces(start: int, memory: bytes) -> Iterator[Piece]:
    begin: int | None = None
    for offset in range(0, len(memory) + PAGE, PAGE):
        if any(memory[offset : offset + PAGE]):
            begin = offset if begin is None else begin
        elif begin is not None:
            yield Piece(start + begin, memory[begin:offset])
            begin = None
