"""Signals in the kernel model: the handler starts initial, the frame brings everything back, bad frames kill."""

from dataclasses import replace

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY
from fpstate.engine.model import signals
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.signals import deliver_signal, sigreturn
from fpstate.engine.model.virtual_machine import create_vcpu, enter_guest
from fpstate.errors import ImageError, VsoError
from fpstate.image import Image
from fpstate.image.consumer import INIT_PKRU
from fpstate.image.subject import FRAME, MAGIC1, MAGIC2, MAGIC2_SIZE, SOFTWARE_AT

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

TILEDATA = mask_of(Component.TILEDATA)
PROCESSORS = ("zen1", "haswell", "knights-landing", "skylake-sp", "sapphire-rapids", "diamond-rapids-model")
USER = {"xmm3": 7, "mxcsr": 0x1FA0, "fctrl": 0x0F7F, "st0": 0x4000_C90F_DAA2_2168_C235}
WIDE = {"zmm31": 0x7777, "k1": 3, "pkru": 0x30, "tmm2": 1 << 8000}


class Handled:
    """A task with registers of its own, and a signal that comes."""

    def __init__(self, name: str) -> None:
        self.kernel = Kernel(Cpu.catalog(name))
        (self.core,) = self.kernel.cores
        self.task = self.kernel.spawn()
        self.kernel.switch(self.core, self.task)
        self.written = USER
        if self.kernel.config.init_xfd:
            self.kernel.request(self.task, Component.TILEDATA)
            self.written = USER | WIDE
        self.write(self.written)

    def write(self, values: dict[str, int]) -> None:
        for register, value in values.items():
            self.kernel.run(self.core, lambda cpu, name=register, new=value: cpu.write(name, new))

    def read(self, values: dict[str, int]) -> dict[str, int]:
        return {name: self.core.processor.read(name) for name in values}

    def frame(self) -> bytes:
        return deliver_signal(self.kernel, self.core)


@pytest.fixture
def spr() -> Handled:
    return Handled("sapphire-rapids")


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_handler_starts_initial_and_the_return_brings_everything_back(name):
    handled = Handled(name)
    handled.frame()
    assert handled.core.registers.in_use & ~mask_of(Component.PKRU) == 0
    handled.write({"xmm3": 99, "mxcsr": 0x1F81})
    sigreturn(handled.kernel, handled.core)
    assert handled.read(handled.written) == handled.written


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_switch_inside_the_handler_loses_neither(name):
    handled = Handled(name)
    other = handled.kernel.spawn()
    handled.frame()
    handled.write({"xmm3": 99})
    handled.kernel.switch(handled.core, other)
    handled.kernel.switch(handled.core, handled.task)
    assert handled.read({"xmm3": 99, "mxcsr": 0x1F80}) == {"xmm3": 99, "mxcsr": 0x1F80}
    sigreturn(handled.kernel, handled.core)
    assert handled.read(handled.written) == handled.written


def test_a_handler_that_keeps_the_registers_would_be_seen(spr, monkeypatch):
    monkeypatch.setattr(type(spr.core.registers), "restore", lambda self, image, rfbm: None)
    spr.frame()
    assert spr.core.registers.in_use & ~mask_of(Component.PKRU)


def test_supervisor_components_stay_in_both_directions(spr):
    spr.write({"pl3_ssp": 0x1000})
    spr.frame()
    assert spr.read({"pl3_ssp": 0}) == {"pl3_ssp": 0x1000}
    spr.write({"pl3_ssp": 0x2000})
    sigreturn(spr.kernel, spr.core)
    assert spr.read({"pl3_ssp": 0}) == {"pl3_ssp": 0x2000}


def test_the_handler_has_the_pkru_of_a_new_program_and_the_frame_the_old_one(spr):
    for value in (0x30, 0):
        spr.write({"pkru": value})
        frame = spr.frame()
        assert spr.read({"pkru": 0}) == {"pkru": INIT_PKRU}
        assert int.from_bytes(frame[512:520], "little") >> Component.PKRU & 1
        sigreturn(spr.kernel, spr.core)
        assert spr.read({"pkru": 0}) == {"pkru": value}


def test_the_frame_is_as_large_as_the_task_has_grown():
    assert len(Handled("sapphire-rapids").frame()) == 11008 + MAGIC2_SIZE
    kernel = Kernel(Cpu.catalog("sapphire-rapids"))
    kernel.switch(kernel.cores[0], kernel.spawn())
    assert len(deliver_signal(kernel, kernel.cores[0])) == 2816 + MAGIC2_SIZE


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_frame_says_what_it_is_and_states_x87_and_sse_whatever_they_are(name):
    kernel = Kernel(Cpu.catalog(name))
    (core,) = kernel.cores
    task = kernel.spawn()
    kernel.switch(core, task)
    frame, state = deliver_signal(kernel, core), task.fpu.fpstate
    size = state.user_size
    assert FRAME.unpack_from(frame, SOFTWARE_AT) == (MAGIC1, size + 4, state.user_xfeatures, size)
    assert frame[size:] == MAGIC2.to_bytes(4, "little")
    assert int.from_bytes(frame[512:520], "little") & LEGACY == LEGACY


WHAT_FRAMES_BRING = {
    "magic1": (464, bytes(4), {"xmm3": 7, "mxcsr": 0x1FA0, "zmm31": 0, "k1": 0, "pkru": 0, "tmm2": 0}),
    "magic2": (11008, bytes(4), {"xmm3": 7, "mxcsr": 0x1FA0, "zmm31": 0, "k1": 0, "pkru": 0, "tmm2": 0}),
    "xstate_size below the header's end": (480, b"\x3f\x02\0\0", {"xmm3": 7, "zmm31": 0, "pkru": 0}),
    "xstate_size above the task's": (480, b"\x40\x2b\0\0", {"xmm3": 7, "zmm31": 0, "pkru": 0}),
    "extended_size below xstate_size": (468, b"\xff\x2a\0\0", {"xmm3": 7, "zmm31": 0, "pkru": 0}),
    "xfeatures of x87 and SSE": (472, b"\x03" + bytes(7), {"xmm3": 7, "zmm31": 0, "k1": 0, "tmm2": 0}),
    "every bit of xfeatures": (472, b"\xff" * 8, {"xmm3": 7, "zmm31": 0x7777, "k1": 3, "pkru": 0x30}),
    "XSTATE_BV of nothing": (512, bytes(8), {"xmm3": 0, "mxcsr": 0x1FA0, "zmm31": 0, "k1": 0, "tmm2": 0}),
    "reserved bytes that XRSTOR does not look at": (536, b"\1", {"xmm3": 7, "zmm31": 0x7777, "pkru": 0x30}),
}
"""Offset, bytes, and registers afterwards, as sigreturn was measured (Linux 6.18)."""


@pytest.mark.parametrize("change", WHAT_FRAMES_BRING)
def test_a_frame_that_is_not_believed_brings_x87_and_sse_alone(spr, change):
    offset, data, expected = WHAT_FRAMES_BRING[change]
    frame = bytearray(spr.frame())
    frame[offset : offset + len(data)] = data
    sigreturn(spr.kernel, spr.core, bytes(frame))
    assert spr.read(expected) == expected


def test_clearing_pointers_for_the_rest_does_not_clear_the_x87_that_the_frame_brought():
    handled = Handled("bulldozer")
    frame = bytearray(handled.frame())
    frame[472] = LEGACY
    sigreturn(handled.kernel, handled.core, bytes(frame))
    expected = USER | {"mxcsr": 0x1F80}  # the standard format brings it with AVX, which becomes initial
    assert handled.read(USER) == expected


def test_a_smaller_frame_with_its_own_magic_word_is_believed(spr):
    """B13: the second magic word is where the frame says, not where the task's own would be."""
    frame = bytearray(spr.frame())[:832] + MAGIC2.to_bytes(4, "little")
    FRAME.pack_into(frame, SOFTWARE_AT, MAGIC1, 836, 7, 832)
    frame[512:520] = (7).to_bytes(8, "little")
    frame[576:592] = (0x5151).to_bytes(16, "little")
    sigreturn(spr.kernel, spr.core, bytes(frame))
    assert spr.read({"ymm0h": 0, "xmm3": 0, "zmm31": 0}) == {"ymm0h": 0x5151, "xmm3": 7, "zmm31": 0}


def test_without_xsave_a_frame_is_an_fxsave_image_and_a_bad_one_kills():
    cpu = Cpu.catalog("zen4")
    kernel = Kernel(replace(cpu, xcr0=0, xss=0, geometry={}, features=cpu.features & {"FPU", "FXSR", "SSE"}))
    (core,) = kernel.cores
    task = kernel.spawn()
    kernel.switch(core, task)
    kernel.run(core, lambda processor: processor.write("xmm3", 9))
    assert len(deliver_signal(kernel, core)) == 512
    sigreturn(kernel, core)
    assert core.processor.read("xmm3") == 9
    frame = bytearray(deliver_signal(kernel, core))
    frame[26] = 8
    with pytest.raises(ImageError, match="XS017"):
        sigreturn(kernel, core, bytes(frame))
    assert task.killed


def test_signals_are_for_hosts():
    kernel = Kernel(Cpu.catalog("zen4"))
    (core,) = kernel.cores
    task = kernel.spawn()
    create_vcpu(kernel, task)
    kernel.switch(core, task)
    enter_guest(kernel, core)
    with pytest.raises(VsoError, match="guest"):
        deliver_signal(kernel, core)


def test_tiles_that_the_handler_used_first_are_initial_behind_it():
    kernel = Kernel(Cpu.catalog("sapphire-rapids"))
    (core,) = kernel.cores
    task = kernel.spawn()
    kernel.request(task, Component.TILEDATA)
    kernel.switch(core, task)
    kernel.run(core, lambda cpu: cpu.write("zmm31", 5))
    assert len(deliver_signal(kernel, core)) == 2816 + MAGIC2_SIZE
    kernel.run(core, lambda cpu: cpu.write("tmm0", 6))
    assert task.fpu.fpstate.user_size == 11008
    sigreturn(kernel, core)
    assert (core.processor.read("tmm0"), core.processor.read("zmm31")) == (0, 5)


def test_signals_nest(spr):
    spr.frame()
    spr.write({"zmm31": 1})
    spr.frame()
    spr.write({"zmm31": 2})
    sigreturn(spr.kernel, spr.core)
    assert spr.read({"zmm31": 0}) == {"zmm31": 1}
    sigreturn(spr.kernel, spr.core)
    assert spr.read(spr.written) == spr.written
    with pytest.raises(VsoError, match="no signal handler"):
        sigreturn(spr.kernel, spr.core)


def test_a_changed_frame_changes_the_registers_and_what_it_lacks_is_initial(spr):
    frame = spr.frame()
    layout = Layout.standard(spr.kernel.cpu, spr.task.fpu.fpstate.user_xfeatures)
    image = Image(bytearray(frame[: layout.size]), layout)
    image.registers["k1"] = 12
    without_pkru = image.xstate_bv & ~mask_of(Component.PKRU, Component.TILEDATA)
    image.store.view[512:520] = without_pkru.to_bytes(8, "little")
    sigreturn(spr.kernel, spr.core, image.to_bytes() + frame[layout.size :])
    assert spr.read({"k1": 0, "pkru": 0, "tmm2": 0}) == {"k1": 12, "pkru": 0, "tmm2": 0}


@pytest.mark.parametrize(("offset", "value"), [(519, 1), (520, 1), (26, 1)])
def test_frames_that_the_processor_refuses_kill_the_task_before_it_sees_them(spr, monkeypatch, offset, value):
    frame = bytearray(spr.frame())
    frame[offset] = value
    monkeypatch.setattr(type(spr.core.processor), "xrstor", None)
    with pytest.raises(ImageError) as caught:
        sigreturn(spr.kernel, spr.core, bytes(frame))
    assert caught.value.offset is not None
    assert spr.task.killed is caught.value
    assert spr.core.registers.in_use == 0


def test_without_that_check_the_processor_would_fault(spr, monkeypatch):
    class Accepted:
        refusals, fx_only = (), False

    monkeypatch.setattr(signals, "predict", lambda *arguments, **named: Accepted)
    frame = bytearray(spr.frame())
    frame[520] = 1
    with pytest.raises(Exception, match="#GP"):
        sigreturn(spr.kernel, spr.core, bytes(frame))


def test_core_is_the_place_of_the_signal():
    kernel = Kernel(Cpu.catalog("zen4"))
    with pytest.raises(VsoError, match="no task"):
        deliver_signal(kernel, Core(kernel.cores[0].registers))


def test_a_frame_without_a_state_leaves_all_initial_and_the_pkru_of_a_new_program(spr):
    spr.frame()
    spr.write({"xmm3": 99, "k1": 5, "pkru": 0})
    sigreturn(spr.kernel, spr.core, b"")
    assert spr.read({"xmm3": 0, "k1": 0, "mxcsr": 0, "pkru": 0}) == {
        "xmm3": 0,
        "k1": 0,
        "mxcsr": 0x1F80,
        "pkru": INIT_PKRU,
    }


def test_a_refused_frame_leaves_the_same_to_a_task_that_handles_it(spr):
    frame = bytearray(spr.frame())
    frame[519] = 1
    spr.write({"xmm3": 99, "pkru": 0})
    with pytest.raises(ImageError):
        sigreturn(spr.kernel, spr.core, bytes(frame), handled=True)
    assert spr.task.killed is None
    assert spr.read({"xmm3": 0, "pkru": 0}) == {"xmm3": 0, "pkru": INIT_PKRU}


def test_permission_alone_does_not_make_frames_larger():
    kernel = Kernel(Cpu.catalog("emerald-rapids"))
    (core,) = kernel.cores
    task = kernel.spawn()
    kernel.switch(core, task)
    kernel.request(task, Component.TILEDATA)
    core.processor.ldtilecfg(b"\1" + bytes(15) + b"\4" + bytes(31) + b"\1" + bytes(15))
    frame = deliver_signal(kernel, core)
    assert FRAME.unpack_from(frame, SOFTWARE_AT) == (MAGIC1, 2820, 0x202E7, 2816)
    assert int.from_bytes(frame[512:520], "little") >> Component.TILECFG & 1
    sigreturn(kernel, core)
    assert core.registers.in_use >> Component.TILECFG & 1


def test_an_illegal_configuration_in_a_frame_becomes_initial_and_the_tiles_are_taken(spr):
    frame = bytearray(spr.frame())
    frame[513:515] = bytes([frame[513], 6])
    frame[2752:2816] = b"\2" + bytes(63)
    sigreturn(spr.kernel, spr.core, bytes(frame))
    assert spr.read({"tilecfg": 0, "tmm2": 0}) == {"tilecfg": 0, "tmm2": 1 << 8000}


def test_a_compacted_header_makes_the_bytes_a_compacted_image(spr):
    """The kernel does not look at XCOMP_BV: the processor finds other registers at the places of this format."""
    frame = bytearray(spr.frame())
    layout = Layout.compacted(spr.kernel.cpu, spr.task.fpu.fpstate.user_xfeatures)
    frame[520:528] = layout.xcomp_bv.to_bytes(8, "little")
    sigreturn(spr.kernel, spr.core, bytes(frame))
    place = layout.place(Component.OPMASK)
    assert spr.core.processor.file.values[Component.OPMASK] == bytes(frame[place.offset : place.end])


@pytest.mark.parametrize("how", ["switch", "signal", "first use of tiles"])
def test_the_kernel_puts_pkru_in_use(how):
    """It writes PKRU itself, of 0 too."""
    handled = Handled("emerald-rapids")
    handled.write({"pkru": 0})
    handled.core.processor.file.in_use &= ~mask_of(Component.PKRU)
    if how == "switch":
        handled.kernel.switch(handled.core, handled.kernel.spawn())
        handled.kernel.switch(handled.core, handled.task)
    elif how == "signal":
        handled.frame()
        sigreturn(handled.kernel, handled.core)
    else:
        handled.core.processor.xfd = TILEDATA
        handled.write({"tmm2": 1})
    assert handled.core.registers.in_use & mask_of(Component.PKRU)
    assert handled.read({"pkru": 0}) == {"pkru": 0}
