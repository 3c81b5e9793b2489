"""Slabs: aligned buffers that come zeroed and go back scrubbed."""

from types import ModuleType

import pytest

from fpstate.errors import PoolExhausted, VsoError

SECRET = b"\xa5" * 576


def slot_of(slab, slot: int) -> memoryview:
    return memoryview(slab)[slot * slab.stride : (slot + 1) * slab.stride]


@pytest.mark.parametrize(("stride", "count"), [(64, 1), (576, 113), (832, 7), (2688, 24), (11008, 5)])
def test_every_slot_is_aligned_zeroed_and_its_own(core: ModuleType, stride: int, count: int) -> None:
    slab = core.Slab(stride, count)
    taken = [slab.take() for _ in range(count)]
    assert sorted(taken) == list(range(count))
    assert slab.address % 64 == 0
    assert (slab.stride, slab.count, slab.taken) == (stride, count, count)
    assert memoryview(slab).nbytes == stride * count
    for slot in taken:
        assert not any(slot_of(slab, slot))
        slot_of(slab, slot)[:] = bytes([slot % 255 + 1]) * stride
    assert all(bytes(slot_of(slab, slot)) == bytes([slot % 255 + 1]) * stride for slot in taken)


def test_a_slot_is_scrubbed_when_it_is_given_back(core: ModuleType) -> None:
    slab = core.Slab(576, 4)
    slot = slab.take()
    slot_of(slab, slot)[:] = SECRET
    slab.give(slot)
    assert not slab.is_taken(slot)
    assert not any(memoryview(slab))


def test_without_scrubbing_the_bytes_would_stay(core: ModuleType) -> None:
    """The negative control of the test above."""
    slab = core.Slab(576, 4)
    slot = slab.take()
    slot_of(slab, slot)[:] = SECRET
    slab.give(slot, scrub=False)
    assert bytes(slot_of(slab, slot)) == SECRET
    assert bytes(slot_of(slab, slab.take())) == SECRET


def test_giving_back_twice_is_an_error_and_changes_nothing(core: ModuleType) -> None:
    slab = core.Slab(64, 3)
    slots = [slab.take() for _ in range(3)]
    slab.give(slots[0])
    with pytest.raises(VsoError, match="twice"):
        slab.give(slots[0])
    assert slab.taken == 2
    assert slab.take() == slots[0]


@pytest.mark.parametrize("slot", [-1, 3, 1 << 40, 0])
def test_a_slot_that_was_never_taken_cannot_be_given_back(core: ModuleType, slot: int) -> None:
    slab = core.Slab(64, 3)
    assert not slab.is_taken(slot)
    with pytest.raises(VsoError):
        slab.give(slot)
    assert slab.taken == 0


def test_a_full_slab_says_so_and_recovers(core: ModuleType) -> None:
    slab = core.Slab(64, 2)
    slots = [slab.take(), slab.take()]
    with pytest.raises(PoolExhausted):
        slab.take()
    slab.give(slots[1])
    assert slab.take() == slots[1]


@pytest.mark.parametrize(("stride", "count"), [(0, 1), (-64, 1), (65, 1), (64, 0), (64, -1), (64, 1 << 62)])
def test_impossible_sizes_are_refused(core: ModuleType, stride: int, count: int) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        core.Slab(stride, count)


def test_a_slab_too_large_for_memory_is_a_memory_error(core: ModuleType) -> None:
    with pytest.raises(MemoryError):
        core.Slab(64, 1 << 55)


def test_a_view_keeps_the_memory_alive(core: ModuleType) -> None:
    view = slot_of(core.Slab(64, 1), 0)
    view[:] = b"\x11" * 64
    assert bytes(view) == b"\x11" * 64
