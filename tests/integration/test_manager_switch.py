"""``Manager.switch``: from VSO to VSO in this thread, elastic and within what each may use."""

from __future__ import annotations

import random

import pytest
from engine_runs import cpu_without_xsavec

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY
from fpstate.errors import ImageError, PermissionDenied, PoolExhausted, UnsupportedHere, VsoError
from fpstate.image import Image
from fpstate.testing import random_image
from fpstate.vso import Manager

pytestmark = pytest.mark.usefixtures("each_core")
AVX = mask_of(Component.AVX)
FREE = LEGACY | mask_of(*(Component.AVX, Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM))


@pytest.fixture
def manager(native) -> Manager:
    return Manager()


def image_with(native, present: int, seed: int = 1) -> Image:
    """A random image of what is usable here; its x87 stack is empty, its exceptions masked, for Python's sake."""
    layout = Layout.standard(Cpu.host(), native.features()["managed_mask"])
    image = random_image(layout, seed, present=present & layout.mask & FREE & ~1, mxcsr_mask=0)
    image.registers["mxcsr"] = 0x1F80
    return image


def test_a_state_goes_in_and_comes_out(native, manager):
    """What a VSO held is in the registers after the switch: another save sees it where Python does not touch it."""
    host, guest, copy = (manager.create() for _ in range(3))
    image = image_with(native, FREE)
    image.registers["mxcsr"] = 0x1F80 | 3 << 13
    manager.load(guest, image)
    before = guest.image()
    manager.switch(host, guest)
    manager.switch(copy, host)
    assert guest.image() == before
    assert copy.image().registers["mxcsr"] & 0x6000 == 0x6000
    assert host.image().registers["mxcsr"] & 0x6000 == 0


def test_a_buffer_grows_to_what_the_thread_uses(native, manager):
    host, guest = manager.create(), manager.create()
    assert host.size == 0
    manager.load(guest, image_with(native, FREE))
    manager.switch(host, guest)
    assert host.size >= 576
    assert host.in_use & ~host.xfeatures == 0
    growths = manager.statistics().growths
    manager.switch(guest, host)
    assert manager.statistics().growths == growths
    counts = manager.statistics()
    assert (counts.saves, counts.restores) == (2, 2)


def test_what_a_context_may_not_use_stops_it_and_leaves_the_other_unharmed(native, manager):
    """The thread uses SSE and more than SSE; a VSO held to less cannot take that."""
    wide, narrow, other = manager.create(), manager.create(permitted=LEGACY), manager.create()
    if not native.features()["managed_mask"] & AVX:
        pytest.skip("AVX is not enabled (XCR0[2])")
    manager.load(wide, image_with(native, FREE))
    held = image_with(native, LEGACY, seed=2)
    manager.load(other, held)
    manager.switch(manager.create(), wide)
    with pytest.raises(PermissionDenied, match="only"):
        manager.switch(narrow, other)
    assert narrow.size == 0
    assert other.image() == held
    assert manager.statistics().denials == 1
    if native.features()["xgetbv1"]:
        assert native.xgetbv(1) & mask_of(Component.AVX, Component.ZMM_HI256) == 0
    assert not any(any(memory) for memory in manager.pool.free_memory())


def test_without_memory_nothing_changes(native, manager, monkeypatch):
    host, guest = manager.create(), manager.create()
    manager.load(guest, image_with(native, LEGACY))
    before = guest.image()

    def exhausted(size: int) -> None:
        raise PoolExhausted("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(manager.pool, "take", exhausted)
        with pytest.raises(PoolExhausted):
            manager.switch(host, guest)
    assert host.size == 0
    assert guest.image() == before
    manager.switch(host, guest)
    manager.switch(guest, host)


def test_an_image_that_someone_spoiled_is_not_loaded(native, manager):
    host, guest = manager.create(), manager.create()
    manager.load(guest, image_with(native, FREE))
    guest.buffer.view[528] = 1
    with pytest.raises(ImageError, match="528"):
        manager.switch(host, guest)
    guest.buffer.view[528] = 0
    manager.switch(host, guest)
    manager.switch(guest, host)


@pytest.mark.parametrize("late", [False, True], ids=["after the save", "while it is stored"])
def test_an_interrupt_leaves_no_state_in_the_spill_area(native, manager, monkeypatch, late):
    host, guest, size = manager.create(), manager.create(), native.features()["area_size"]
    save, seen = native.save_state, []

    def spilled() -> bytes:
        native.unspill(found := bytearray(size), ((0, 0, size),), False)
        return bytes(found)

    def interrupted(*arguments: object) -> tuple[int, bool]:
        answer = save(*arguments)
        seen.append(spilled())
        if late:
            return answer
        raise KeyboardInterrupt

    def no_store(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "save_state", interrupted)
    monkeypatch.setattr(manager, "store", no_store)
    with pytest.raises(KeyboardInterrupt):
        manager.switch(host, guest)
    assert any(seen[0])
    assert not any(spilled())


def test_what_only_moves_would_look_at_is_not_looked_at(native, manager):
    """XRSTOR takes a compacted image without SSE whatever stands in MXCSR's place; FXRSTOR would fault."""
    host, guest = manager.create(), manager.create()
    manager.load(guest, image_with(native, LEGACY))
    view = guest.buffer.view
    if not int.from_bytes(view[520:528], "little") >> 63:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    view[0:24] = (0x077F).to_bytes(2, "little") + bytes(22)
    view[24:28] = b"\xff" * 4
    view[32:160] = bytes(128)
    view[512:520] = (1).to_bytes(8, "little")
    manager.switch(host, guest)
    manager.switch(guest, host)
    assert guest.image().registers["fcw"] == 0x077F


def test_random_states_survive_many_switches(native, manager):
    source = random.Random(9)
    host = manager.create()
    guests = [manager.create() for _ in range(16)]
    images = [image_with(native, source.getrandbits(8), seed) for seed in range(16)]
    for guest, image in zip(guests, images, strict=True):
        manager.load(guest, image)
    for _ in range(100):
        manager.switch(host, source.choice(guests))
        manager.switch(manager.create(), host)
    assert all(guest.image() == image for guest, image in zip(guests, images, strict=True))


def test_vsos_of_others_and_freed_ones_are_refused(manager):
    mine, foreign, freed = manager.create(), Manager().create(), manager.create()
    manager.free(freed)
    for pair in ((mine, foreign), (foreign, mine), (mine, freed), (freed, mine)):
        with pytest.raises(VsoError):
            manager.switch(*pair)


def test_a_manager_that_lays_states_out_otherwise_is_unsupported_here(native):
    if not native.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    manager = Manager(cpu_without_xsavec())
    with pytest.raises(UnsupportedHere, match="layout"):
        manager.switch(manager.create(), manager.create())
