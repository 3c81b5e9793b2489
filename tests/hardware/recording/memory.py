"""Memory that a child and its parent know by the same addresses, given out piece by piece."""

from __future__ import annotations

import mmap

BASE = 0x1000_0000
"""Where the memory begins in the child; in child.h too."""
_ALIGNMENT = 64


class Memory:
    """Gives out a buffer, from ``start`` on. Pieces are aligned to 64."""

    def __init__(self, buffer: mmap.mmap | bytearray, start: int) -> None:
        self.memory = buffer
        self._kept = self._free = start

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return BASE + len(self.memory)

    def place(self, data: bytes | bytearray) -> int:
        """Put bytes into memory, and return their address."""
        address = self.reserve(len(data))
        self.memory[address - BASE : address - BASE + len(data)] = bytes(data)
        return address

    def reserve(self, size: int) -> int:
        """Return the address of ``size`` bytes that hold what was left there."""
        start = -(-self._free // _ALIGNMENT) * _ALIGNMENT
        self._free = start + size
        assert self._free <= len(self.memory)
        return BASE + start

    def keep(self) -> None:
        """Let what was placed so far stay there for good."""
        self._kept = self._free

    def release(self) -> None:
        """Forget what was placed since ``keep``."""
        self._free = self._kept

    def read(self, address: int, size: int) -> bytes:
        """Return bytes of the memory."""
        return bytes(self.memory[address - BASE : address - BASE + size])
