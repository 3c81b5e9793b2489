"""ptrace in the kernel model: what a tracer writes, reads back, and what the task then has."""

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.engine.model.kernel import Kernel
from fpstate.engine.model.ptrace import get_regset, set_regset
from fpstate.errors import ImageError, VsoError
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

CONFIGURATION = b"\1" + bytes(15) + b"\4" + bytes(31) + b"\1" + bytes(15)
ILLEGAL = b"\2" + bytes(63)
TILECFG, TILEDATA = Component.TILECFG, Component.TILEDATA


class Traced:
    """A task, of an Emerald Rapids where nothing else is said, with permission for tiles or without, stopped."""

    def __init__(self, *, permitted: bool = False, used: bool = False, name: str = "emerald-rapids") -> None:
        self.kernel = Kernel(Cpu.catalog(name))
        (self.core,) = self.kernel.cores
        self.task = self.kernel.spawn()
        self.layout = Layout.standard(self.kernel.cpu, self.kernel.config.user_max.features)
        if permitted:
            self.kernel.request(self.task, TILEDATA)
        self.run()
        if used:
            self.kernel.run(self.core, lambda cpu: (cpu.ldtilecfg(CONFIGURATION), cpu.tilezero(0)))
            self.core.processor.tilerelease()
        self.stop()

    def run(self) -> None:
        self.kernel.switch(self.core, self.task)

    def stop(self) -> None:
        self.kernel.switch(self.core, None)

    def image(self) -> Image:
        return Image(bytearray(get_regset(self.kernel, self.task)), self.layout)

    def set(self, image: Image) -> None:
        set_regset(self.kernel, self.task, image.to_bytes())

    def put(self, component: int, data: bytes) -> None:
        """Write the regset with one component changed."""
        image = self.image()
        image.store.activate(component)
        start = self.layout.offset(component)
        image.store.view[start : start + len(data)] = data
        self.set(image)


def test_what_is_written_is_read_back_and_then_in_the_registers():
    traced = Traced()
    image = traced.image()
    image.registers["zmm17"], image.registers["k3"], image.registers["pkru"] = 7, 5, 0x30
    traced.set(image)
    assert traced.image().registers["zmm17"] == 7
    traced.run()
    assert [traced.core.processor.read(name) for name in ("zmm17", "k3", "pkru")] == [7, 5, 0x30]


@pytest.mark.parametrize("permitted", [False, True])
def test_the_answer_is_as_long_as_any_task_may_need(permitted):
    assert (
        len(get_regset(Traced(permitted=permitted).kernel, Traced(permitted=permitted).kernel.spawn()))
        == 11008
    )


def test_tiles_are_taken_once_they_were_used_and_not_for_permission_alone():
    for traced in (Traced(), Traced(permitted=True)):
        before = get_regset(traced.kernel, traced.task)
        with pytest.raises(ImageError, match="XSTATE_BV"):
            traced.put(TILEDATA, b"\7" * 8192)
        assert get_regset(traced.kernel, traced.task) == before
    traced = Traced(permitted=True, used=True)
    traced.put(TILEDATA, b"\7" * 8192)
    traced.run()
    assert traced.core.processor.file.values[TILEDATA] == b"\7" * 8192


def test_a_configuration_is_taken_without_permission():
    traced = Traced()
    traced.put(TILECFG, CONFIGURATION)
    traced.run()
    assert traced.core.processor.file.values[TILECFG] == CONFIGURATION
    assert traced.core.registers.in_use & mask_of(TILECFG)


def test_an_illegal_configuration_reads_back_and_is_initial_once_the_task_runs():
    traced = Traced()
    traced.put(TILECFG, ILLEGAL)
    start = traced.layout.offset(TILECFG)
    assert traced.image().xstate_bv & mask_of(TILECFG)
    assert get_regset(traced.kernel, traced.task)[start : start + 64] == ILLEGAL
    traced.run()
    assert traced.core.processor.file.values[TILECFG] == bytes(64)
    assert not traced.core.registers.in_use & mask_of(TILECFG)
    traced.stop()
    assert not traced.image().xstate_bv & mask_of(TILECFG)


def test_pkru_that_is_not_stated_becomes_0():
    traced = Traced()
    data = bytearray(get_regset(traced.kernel, traced.task))
    data[513] &= ~2
    set_regset(traced.kernel, traced.task, bytes(data))
    assert not traced.image().xstate_bv & mask_of(Component.PKRU)
    traced.run()
    assert traced.core.processor.read("pkru") == 0


def test_an_mxcsr_that_avx_alone_states_reads_back_and_is_lost():
    traced = Traced()
    data = bytearray(get_regset(traced.kernel, traced.task))
    data[512:520] = mask_of(Component.AVX).to_bytes(8, "little")
    data[24:28] = (0x1F81).to_bytes(4, "little")
    set_regset(traced.kernel, traced.task, bytes(data))
    assert traced.image().registers["mxcsr"] == 0x1F81
    traced.run()
    assert traced.core.processor.read("mxcsr") == 0x1F80


@pytest.mark.parametrize("stated", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("old", [0x1F80, 0x7F80])
def test_the_standard_format_brings_mxcsr_whatever_is_stated(stated, old):
    """Without XSAVEC the kernel restores in that format. With neither x87, SSE nor AVX the old one stays."""
    traced = Traced(name="haswell")
    target, processor = Target.from_cpu(traced.kernel.cpu), traced.core.processor
    traced.run()
    processor.ldmxcsr(old)
    traced.stop()
    data = traced.image().to_bytes()
    data = data[:24] + (0x3FA1).to_bytes(4, "little") + data[28:512] + bytes([stated]) + data[513:]
    foretold = predict(data, Consumer.PTRACE, target)
    set_regset(traced.kernel, traced.task, data)
    traced.run()
    assert processor.file.mxcsr == (old if foretold.mxcsr is None else foretold.mxcsr)
    assert processor.file.mxcsr == (0x3FA1 if stated else old)


def test_a_tracee_is_stopped():
    traced = Traced()
    traced.run()
    with pytest.raises(VsoError, match="runs"):
        get_regset(traced.kernel, traced.task)
