"""Where buffers come from and go back to: one list of slabs for each size, every byte scrubbed on its way back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fpstate.errors import UnsupportedHere

if TYPE_CHECKING:
    from fpstate._core import Slab

ALIGNMENT = 64
"""XSAVE areas start at a multiple of this (SDM vol. 1, 13.4)."""
SLAB_BYTES = 64 * 1024
"""Bytes of the first slab of a size. Each further one is twice as large, up to ``LARGEST_SLAB``."""
LARGEST_SLAB = 4 << 20
"""Slabs of 2 MiB and more lie on transparent huge pages where the kernel has them."""
_PAGE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A slot of a slab; ``view`` is its memory, of ``size`` bytes."""

    slab: Slab
    slot: int
    size: int

    @property
    def view(self) -> memoryview:
        """The writable bytes."""
        start = self.slot * self.slab.stride
        return memoryview(self.slab)[start : start + self.size]


class Pool:
    """Buffers by size. Not bound to a processor: sizes are bytes, rounded up to the alignment.

    May be used from several threads.
    """

    def __init__(self) -> None:
        self._slabs: dict[int, list[Slab]] = {}
        self._lock = threading.Lock()
        self._held = 0
        self._peak = 0

    @property
    def bytes_held(self) -> int:
        """Bytes in buffers that are taken now."""
        return self._held

    @property
    def bytes_peak(self) -> int:
        """The most bytes that were ever taken at once."""
        return self._peak

    @property
    def bytes_mapped(self) -> int:
        """Bytes of all slots, taken or free."""
        return sum(slab.stride * slab.count for slabs in self._slabs.values() for slab in slabs)

    def take(self, size: int) -> Buffer:
        """Return a zeroed buffer of ``size`` bytes. Raises PoolExhausted or MemoryError; nothing is lost then."""
        stride = stride_of(size)
        with self._lock:
            slab = self._slab_with_room(stride)
            buffer = Buffer(slab, slab.take(), size)
            self._held += stride
            self._peak = max(self._peak, self._held)
        return buffer

    def give(self, buffer: Buffer) -> None:
        """Scrub a buffer and take it back. Raises VsoError when it was given back before."""
        with self._lock:
            self._scrub_and_free(buffer)
            self._held -= buffer.slab.stride

    def free_memory(self) -> Iterator[memoryview]:
        """Yield the bytes of each free slot: all zeros, if scrubbing works."""
        with self._lock:
            slabs = [slab for slabs in self._slabs.values() for slab in slabs]
        for slab in slabs:
            view = memoryview(slab)
            for slot in range(slab.count):
                if not slab.is_taken(slot):
                    yield view[slot * slab.stride : (slot + 1) * slab.stride]

    def _scrub_and_free(self, buffer: Buffer) -> None:
        buffer.slab.give(buffer.slot)

    def _slab_with_room(self, stride: int) -> Slab:
        slabs = self._slabs.setdefault(stride, [])
        for slab in reversed(slabs):
            if slab.taken < slab.count:
                return slab
        slabs.append(_new_slab(stride, min(SLAB_BYTES << len(slabs), LARGEST_SLAB)))
        return slabs[-1]


def stride_of(size: int) -> int:
    """Return the distance of two buffers: aligned, and no multiple of 4096, at which loads and stores alias."""
    stride = -(-size // ALIGNMENT) * ALIGNMENT
    return stride if stride % _PAGE else stride + ALIGNMENT


def _new_slab(stride: int, size: int) -> Slab:
    try:
        from fpstate._core import Slab
    except ImportError as error:
        raise UnsupportedHere("the native core (fpstate._core), which aligns buffers") from error
    return Slab(stride, max(1, size // stride))
