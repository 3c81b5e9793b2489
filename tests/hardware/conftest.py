"""Random states of this processor, as images."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from oracle import host_target
from recording.child import compile_child
from recording.host import NONE, USED, Host
from restorer import Restorer

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.arch.component import USER_DYNAMIC, components_in
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.testing.case import clean_case

RandomImage = Callable[[random.Random, Format], Image]

FREELY_CHOSEN = mask_of(
    *(Component.X87, Component.SSE, Component.AVX),
    *(Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM, Component.APX),
)
"""Components in which any bits are legal, x87's status and MXCSR's reserved bits aside."""

FCW_WRITABLE, FCW_FIXED = 0x1F3F, 0x0040
"""Bit 6 of FCW is always set, bits 7 and 13 to 15 never are."""
CONTROLS = (0x037F, 0x0F7F, 0x0040, 0x1F7F)
NASTY = (0, 0, 1, 1 << 63, (1 << 64) - 1, 0x3FF0_0000_0000_0000, 0x7FF0_0000_0000_0001)


@pytest.fixture
def statable(core: ModuleType) -> int:
    """The components that an image may state here: of those that IA32_XFD can hold back, the permitted ones alone."""
    found = core.features()
    permitted = found["managed_mask"] if found["permission"] is None else found["permission"]
    return found["managed_mask"] & ~(found["dynamic_mask"] & ~permitted)


@pytest.fixture
def any_bits(statable: int) -> int:
    """Components in which any bit may be flipped here: tiles too, where they are permitted, never TILECFG."""
    return statable & (FREELY_CHOSEN | mask_of(Component.TILEDATA))


@pytest.fixture(scope="session")
def random_image(core: ModuleType) -> RandomImage:
    """Make an image of a random part of what is usable here, sparse or dense, in either format."""
    cpu, usable = Cpu.host(), core.features()["managed_mask"] & FREELY_CHOSEN
    layouts = {
        Format.STANDARD: Layout.standard(cpu, core.features()["managed_mask"]),
        Format.COMPACTED: Layout.compacted(cpu, core.features()["managed_mask"]),
    }

    def make(source: random.Random, format: Format) -> Image:
        layout = layouts[format]
        image = Image.initial(layout)
        present = sum(1 << number for number in components_in(usable) if source.random() < 0.7)
        for number in components_in(present):
            _fill(image, number, source, cpu)
        image.store.view[512:520] = present.to_bytes(8, "little")
        return image

    return make


def _fill(image: Image, component: int, source: random.Random, cpu: Cpu) -> None:
    place, view = image.layout.place(component), image.store.view
    if component == Component.X87:
        view[0:24] = _x87_control(source)
        for start in range(32, 160, 16):
            view[start : start + 10] = _bits(source, 10)
        return
    view[place.offset : place.end] = _bits(source, place.size)
    if component == Component.SSE:
        view[24:28] = (source.getrandbits(32) & cpu.mxcsr_mask).to_bytes(4, "little")


def _x87_control(source: random.Random) -> bytes:
    control = source.choice((*CONTROLS, source.getrandbits(16) & FCW_WRITABLE | FCW_FIXED))
    status, tags, opcode = source.getrandbits(16), source.getrandbits(8), source.getrandbits(11)
    pointers = source.getrandbits(47), source.getrandbits(47)
    words = [control.to_bytes(2, "little"), status.to_bytes(2, "little"), bytes([tags, 0])]
    return b"".join([*words, opcode.to_bytes(2, "little"), *(p.to_bytes(8, "little") for p in pointers)])


def _bits(source: random.Random, size: int) -> bytes:
    if source.random() < 0.5:
        return source.randbytes(size)
    words = (source.choice(NASTY).to_bytes(8, "little") for _ in range(size // 8 + 1))
    return b"".join(words)[:size]


@pytest.fixture(scope="module", params=[NONE, USED], ids=["no-tiles", "tiles"])
def permission(core: ModuleType, request: pytest.FixtureRequest) -> int:
    """Without permission for TILEDATA, and with it, once tiles were used."""
    if request.param == USED and not Host.here().has_tiles:
        pytest.skip("AMX: TILEDATA on request (XCR0[18], CPUID.(0DH,1):EAX[4])")
    chosen: int = request.param
    return chosen


@pytest.fixture(scope="session")
def recording_child(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that performs single instructions."""
    return compile_child(gcc, tmp_path_factory.mktemp("child"))


@pytest.fixture(scope="module")
def target(permission: int) -> Target:
    """This machine under Linux, for a task with that permission."""
    return host_target(permission)


@pytest.fixture(scope="module")
def restorer(recording_child: Path, permission: int, target: Target) -> Iterator[Restorer]:
    """A child that restores images, each after a pattern that differs from clean cases in SSE."""
    permitted = USER_DYNAMIC if permission == USED else 0
    pattern = clean_case(Consumer.XRSTOR, target.cpu, permitted=permitted).data
    for index in range(160, 416):
        pattern[index] ^= 0xFF
    with Restorer(recording_child, pattern, permission=permission) as restorer:
        yield restorer
