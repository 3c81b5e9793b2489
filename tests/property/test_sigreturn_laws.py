"""Random signal frames: what the kernel model makes of them is what the rules foretell, on every kind of processor."""

import random
from collections.abc import Callable

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import COMPACTED_BIT
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.engine.model.signals import deliver_signal, sigreturn
from fpstate.errors import FpStateError, ImageError
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import Verdict, predict
from fpstate.image.subject import MAGIC2

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

PROCESSORS = (
    *("zen1", "haswell", "knights-landing", "skylake-sp", "sapphire-rapids", "diamond-rapids-model"),
    *("apx-no-amx-model", "zen4", "bulldozer", "zen2"),
)
FRAMES = 150
WRITTEN = {
    **{"xmm3": 7, "mxcsr": 0x1FA0, "st0": 0x4000_C90F_DAA2_2168_C235, "ymm3h": 5, "zmm31": 7, "k1": 3},
    **{"pkru": 0x30, "tmm2": 9, "r17": 5, "bnd1": 6},
}
LENGTHS = (576, 832, 1088, 2432, 2440, 2696, 2816)
SSE, PKRU = mask_of(Component.SSE), mask_of(Component.PKRU)


class Case:
    """A task with registers in use, whose frame is then changed at random."""

    def __init__(self, name: str, number: int) -> None:
        self.chance = random.Random(f"{name} {number}")
        self.kernel = Kernel(Cpu.catalog(name))
        self.core: Core = self.kernel.cores[0]
        self.task = self.kernel.spawn()
        if self.kernel.config.init_xfd and self.chance.random() < 0.5:
            self.kernel.request(self.task, Component.TILEDATA)
        self.kernel.switch(self.core, self.task)
        self.write(WRITTEN)
        self.frame = bytearray(deliver_signal(self.kernel, self.core))
        self.write({name: value + 1 for name, value in WRITTEN.items() if self.chance.random() < 0.5})
        for _ in range(self.chance.randrange(1, 4)):
            self.chance.choice(CHANGES)(self)

    def write(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            try:
                self.kernel.run(self.core, lambda cpu, name=name, value=value: cpu.write(name, value))
            except FpStateError:
                continue

    def predicted(self) -> Verdict:
        state = self.task.fpu.fpstate
        target = Target.from_cpu(self.kernel.cpu)
        target = target.with_(user_xfeatures=state.user_xfeatures, xfd=state.xfd)
        return predict(bytes(self.frame), Consumer.SIGRETURN, target)

    def flip(self, first: int, size: int) -> None:
        self.frame[first + self.chance.randrange(size)] ^= 1 << self.chance.randrange(8)

    def mask(self, at: int, flags: int = 0) -> None:
        value = flags | self.chance.getrandbits(20) & self.kernel.config.xcr0
        self.frame[at : at + 8] = value.to_bytes(8, "little")

    def resize(self) -> None:
        size = self.chance.choice(LENGTHS)
        if size + 4 <= len(self.frame):
            self.frame[480:484] = size.to_bytes(4, "little")
            self.frame[size : size + 4] = MAGIC2.to_bytes(4, "little")

    def cut(self) -> None:
        del self.frame[self.chance.randrange(576, len(self.frame) + 1) :]


CHANGES: tuple[Callable[[Case], None], ...] = (
    lambda case: case.flip(464, 20),
    lambda case: case.flip(512, 64),
    lambda case: case.flip(24, 4),
    lambda case: case.mask(472),
    lambda case: case.mask(512),
    lambda case: case.mask(520, COMPACTED_BIT),
    Case.resize,
    Case.cut,
)


def check(name: str) -> int:
    """Return how many frames were accepted."""
    accepted = 0
    for number in range(FRAMES):
        case = Case(name, number)
        verdict, before = case.predicted(), case.core.processor.file.mxcsr
        try:
            sigreturn(case.kernel, case.core, bytes(case.frame))
        except ImageError:
            assert verdict.refusals, number
            assert not case.core.registers.in_use & ~PKRU, number
            continue
        assert not verdict.refusals, number
        accepted += 1
        assert case.core.processor.file.mxcsr == (before if verdict.mxcsr is None else verdict.mxcsr), number
        assert not case.core.registers.in_use & verdict.initialised & ~SSE, number
    return accepted


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_kernel_model_does_what_the_rules_foretell(name):
    assert FRAMES / 8 < check(name) < FRAMES


def test_a_kernel_that_leaves_what_the_frame_lacks_is_caught(monkeypatch):
    monkeypatch.setattr(KernelRegisters, "restore", lambda self, image, rfbm: None)
    with pytest.raises(AssertionError):
        check("zen4")
