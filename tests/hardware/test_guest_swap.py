"""Host and guest states that are swapped go through the registers of this processor, and come out as they were."""

import random
from types import ModuleType

import pytest

from fpstate.arch import Cpu, Format, Layout
from fpstate.errors import RestoreFault
from fpstate.image import Image, differences
from fpstate.vso import GuestFpu, Manager, TaskFpu
from fpstate.vso.fpstate import Fpstate

ROUNDS = 200


class RealRegisters:
    """What this processor makes of each image: every restore is an XRSTOR and an XSAVEC."""

    def __init__(self, core: ModuleType) -> None:
        self.core = core
        self.mask = core.features()["managed_mask"]
        self.layout = Layout.compacted(Cpu.host(), self.mask)
        self.xfd = 0
        self.set(Image.initial(self.layout))

    def set(self, image: Image) -> None:
        saved = self.core.exchange(image.to_bytes(), self.mask, True)
        self.image = Image(bytes(saved[: self.layout.size]), self.layout)

    @property
    def in_use(self) -> int:
        return self.image.xstate_bv

    def save(self, rfbm: int) -> Image:
        assert self.in_use & ~rfbm == 0
        return self.image

    def restore(self, image: Image, rfbm: int) -> None:
        assert self.mask & ~rfbm == 0
        self.set(image)


@pytest.fixture
def registers(core: ModuleType) -> RealRegisters:
    if not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    return RealRegisters(core)


def swapped_back_and_forth(registers: RealRegisters, random_image) -> list[int]:
    """How many registers differ after each way, for random states of a host and three guests."""
    source, manager = random.Random(4), Manager()
    task, guests = TaskFpu(manager), [GuestFpu(manager) for _ in range(3)]
    states = {guest: Image.initial(registers.layout) for guest in guests}
    task.load(registers)
    found = []
    for _ in range(ROUNDS):
        own = random_image(source, Format.COMPACTED)
        registers.set(own)
        guest = source.choice(guests)
        task.swap(guest, registers, enter=True)
        found.append(len(differences(states[guest], registers.image)))
        states[guest] = random_image(source, Format.COMPACTED)
        registers.set(states[guest])
        task.swap(guest, registers, enter=False)
        found.append(len(differences(own, registers.image)))
    return found


def test_no_register_is_lost_on_either_way(registers, random_image):
    assert swapped_back_and_forth(registers, random_image) == [0] * 2 * ROUNDS


def test_a_guest_that_finds_the_hosts_registers_would_be_seen(registers, random_image, monkeypatch):
    monkeypatch.setattr(Fpstate, "restore", lambda self, processor: setattr(self, "loaded_on", processor))
    assert any(swapped_back_and_forth(registers, random_image))


def test_an_export_is_taken_by_this_processor_and_holds_the_same(registers, random_image, core):
    source, manager = random.Random(5), Manager()
    task, guest = TaskFpu(manager), GuestFpu(manager)
    layout = Layout.standard(Cpu.host(), guest.user_xfeatures)
    for _ in range(ROUNDS):
        state = random_image(source, Format.COMPACTED)
        task.swap(guest, registers, enter=True)
        registers.set(state)
        task.swap(guest, registers, enter=False)
        exported = Image(guest.export()[: layout.size], layout)
        assert not differences(state, exported)
        registers.set(exported)
        assert not differences(state, registers.image)


def test_an_export_with_a_wrong_header_would_be_refused(registers):
    guest = GuestFpu(Manager())
    data = bytearray(guest.export()[: Layout.standard(Cpu.host(), guest.user_xfeatures).size])
    data[520] = 1
    with pytest.raises(RestoreFault):
        registers.core.exchange(bytes(data), registers.mask, True)
