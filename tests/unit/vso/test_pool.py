"""Pools give aligned, zeroed buffers by size, count them, and take each back once."""

import pytest

from fpstate.errors import VsoError
from fpstate.vso.pool import ALIGNMENT, LARGEST_SLAB, SLAB_BYTES, Pool

core = pytest.importorskip("fpstate._core", reason="the native core (fpstate._core) is not built")


@pytest.mark.parametrize("size", [1, 64, 576, 577, 832, 2696, 11008, 100_000])
def test_buffers_are_zeroed_aligned_and_as_long_as_asked_for(size: int) -> None:
    pool = Pool()
    buffers = [pool.take(size) for _ in range(5)]
    for buffer in buffers:
        assert len(buffer.view) == buffer.size == size
        assert (buffer.slab.address + buffer.slot * buffer.slab.stride) % ALIGNMENT == 0
        assert not any(buffer.view)
        buffer.view[:] = b"\xff" * size
    assert pool.bytes_held == 5 * -(-size // ALIGNMENT) * ALIGNMENT
    for buffer in buffers:
        pool.give(buffer)
    assert pool.bytes_held == 0
    assert not any(any(memory) for memory in pool.free_memory())


def test_buffers_do_not_overlap() -> None:
    pool = Pool()
    buffers = [pool.take(600) for _ in range(300)]
    for index, buffer in enumerate(buffers):
        buffer.view[:] = bytes([index % 256]) * 600
    assert all(bytes(buffer.view) == bytes([index % 256]) * 600 for index, buffer in enumerate(buffers))


@pytest.mark.parametrize("size", [4096, 4090, 8192, 12288])
def test_no_two_buffers_are_a_multiple_of_4096_apart_that_are_neighbours(size: int) -> None:
    """A load from one and a store to the other would be taken for the same address (4 KiB aliasing)."""
    pool = Pool()
    first, second = pool.take(size), pool.take(size)
    assert first.slab is second.slab
    assert first.slab.stride % 4096 == ALIGNMENT
    assert first.slab.stride >= size


def test_slabs_grow_and_the_large_ones_start_on_a_huge_page() -> None:
    pool = Pool()
    buffers = [pool.take(2432) for _ in range(8000)]
    slabs = {id(buffer.slab): buffer.slab for buffer in buffers}.values()
    assert len(slabs) < 12
    large = [slab for slab in slabs if slab.stride * slab.count >= 2 << 20]
    assert large
    assert all(slab.address % (2 << 20) == 0 for slab in large)
    assert max(slab.stride * slab.count for slab in slabs) <= LARGEST_SLAB
    assert pool.bytes_mapped >= pool.bytes_held == 8000 * 2432


def test_a_freed_buffer_is_used_again() -> None:
    pool = Pool()
    first = pool.take(576)
    mapped = pool.bytes_mapped
    for _ in range(1000):
        pool.give(first)
        first = pool.take(576)
    assert pool.bytes_mapped == mapped <= SLAB_BYTES


def test_giving_back_twice_is_an_error_and_counts_once() -> None:
    pool = Pool()
    kept, given = pool.take(64), pool.take(64)
    pool.give(given)
    with pytest.raises(VsoError, match="twice"):
        pool.give(given)
    assert pool.bytes_held == 64
    assert len(kept.view) == 64


def test_the_peak_is_the_most_that_was_held_at_once() -> None:
    pool = Pool()
    buffers = [pool.take(576) for _ in range(3)]
    for buffer in buffers:
        pool.give(buffer)
    pool.take(64)
    assert (pool.bytes_held, pool.bytes_peak) == (64, 3 * 576)


def test_sizes_share_a_slab_when_they_round_to_one_stride() -> None:
    pool = Pool()
    assert pool.take(577).slab is pool.take(640).slab


def test_a_size_that_no_memory_holds_changes_nothing() -> None:
    pool = Pool()
    with pytest.raises(MemoryError):
        pool.take(1 << 50)
    assert pool.bytes_held == pool.bytes_mapped == 0
    assert len(pool.take(64).view) == 64
