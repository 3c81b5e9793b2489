"""Guest-physical memory: mappings of this process, cut into pieces, one memory slot to a mapping."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from dataclasses import dataclass, field

from fpstate.engine.kvm.vcpu import Machine
from fpstate.engine.memory import PAGE_SIZE, pages

CHUNK_SIZE = 8 << 20
_FIRST_ADDRESS = 4 << 30
"""Above where KVM and firmware expect devices."""


class Arena:
    """Takes and gives zeroed memory of a machine. Thread-safe.

    A guest-physical address is used once: what a processor or KVM remembers of one guest's page tables never meets
    those of another.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._lock = threading.Lock()
        self._chunks: list[_Chunk] = []
        self._free_slots: list[int] = []
        self._next_slot = 0
        self._next_address = _FIRST_ADDRESS

    @property
    def bytes_mapped(self) -> int:
        """Bytes of all mappings, used or not."""
        return sum(chunk.size for chunk in self._chunks)

    def take(self, size: int) -> Piece:
        """Return zeroed memory of whole pages. Raises OSError, MemoryError or KvmError; nothing is lost then."""
        size = pages(size)
        with self._lock:
            chunk = self._chunks[-1] if self._chunks else None
            if chunk is None or chunk.size - chunk.used < size:
                full, chunk = chunk, self._add(max(CHUNK_SIZE, size))
                if full and not full.living:  # kept by ``give`` for what was to come
                    self._remove(full)
            piece = Piece(chunk, chunk.used, size)
            chunk.living.add(piece.offset)
            chunk.used += size
        return piece

    def give(self, piece: Piece) -> None:
        """Take a piece back, if it was not given before; its memory goes to the system, which zeroes it."""
        chunk = piece.chunk
        with self._lock:
            if piece.offset not in chunk.living or chunk not in self._chunks:
                return
            chunk.living.remove(piece.offset)
            if chunk.living or chunk is self._chunks[-1]:
                chunk.memory.madvise(mmap.MADV_DONTNEED, piece.offset, piece.size)
            else:
                self._remove(chunk)

    def close(self) -> None:
        """Unmap everything, once the machine is closed."""
        with self._lock:
            for chunk in self._chunks:
                chunk.memory.close()
            self._chunks.clear()

    def _add(self, size: int) -> _Chunk:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if os.environ.get("FPSTATE_DUMP_STATES", "") in ("", "0"):  # else guests are part of core dumps
            memory.madvise(mmap.MADV_DONTDUMP)
        slot, guest_address = self._free_slot(), self._next_address
        self._next_address += size  # before KVM knows: who is interrupted here must not use it again
        self.machine.map(slot, guest_address, ctypes.addressof(ctypes.c_char.from_buffer(memory)), size)
        chunk = _Chunk(memory, guest_address, size, slot)
        self._chunks.append(chunk)
        self._allow_mmu_pages()
        return chunk

    def _free_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._next_slot += 1
        return self._next_slot - 1

    def _allow_mmu_pages(self) -> None:
        """KVM's own limit is a fiftieth of the memory: too little for many small address spaces, of which some could
        then not be entered at all."""
        self.machine.allow_mmu_pages(self.bytes_mapped // PAGE_SIZE)

    def _remove(self, chunk: _Chunk) -> None:
        self.machine.map(chunk.slot, chunk.guest_address, 0, 0)
        self._chunks.remove(chunk)
        self._free_slots.append(chunk.slot)
        chunk.memory.close()


@dataclass(slots=True, eq=False)
class _Chunk:
    memory: mmap.mmap
    guest_address: int
    size: int
    slot: int
    used: int = 0
    living: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Memory of a machine; ``guest_address`` is where a guest's physical memory has it."""

    chunk: _Chunk
    offset: int
    size: int

    @property
    def guest_address(self) -> int:
        """The guest-physical address of its first byte."""
        return self.chunk.guest_address + self.offset

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes. Raises ValueError for any outside."""
        start = self._start(offset, size)
        return self.chunk.memory[start : start + size]

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes. Raises ValueError for any outside."""
        start = self._start(offset, len(data))
        self.chunk.memory[start : start + len(data)] = data

    def _start(self, offset: int, size: int) -> int:
        if not 0 <= offset <= self.size - size:
            raise ValueError(f"{size} bytes at offset {offset} lie outside of {self.size}")
        return self.offset + offset


assert CHUNK_SIZE % PAGE_SIZE == 0
