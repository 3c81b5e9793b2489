"""XSAVES and XRSTORS, and the control registers: CET, Processor Trace, user interrupts, XCR0, IA32_XSS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import COMPACTED_BIT
from fpstate.engine.model import IA32_XSS, Processor
from fpstate.errors import ProcessorFault

C = Component
ROOM = 12288


@pytest.fixture
def processor() -> Processor:
    """Sapphire Rapids in the kernel, with everything enabled."""
    processor = Processor(Cpu.catalog("sapphire-rapids"))
    processor.xsetbv(0, processor.cpu.xcr0)
    processor.wrmsr(IA32_XSS, processor.cpu.xss)
    return processor


def fault_of(action, *arguments, **options) -> ProcessorFault:
    with pytest.raises(ProcessorFault) as caught:
        action(*arguments, **options)
    return caught.value


def place(processor: Processor, component: int) -> slice:
    layout = Layout.compacted(processor.cpu, processor.xcr0 | processor.xss)
    return slice(layout.offset(component), layout.place(component).end)


def test_shadow_stack_registers_are_saved_and_come_back(processor):
    processor.write("pl0_ssp", 0xFFFF8000)
    processor.write("u_cet", 1)
    processor.write("pl3_ssp", 0x7FFF0008)
    area = bytearray(ROOM)
    processor.xsaves(area)
    processor.xrstors(bytes(512) + bytes(8) + (COMPACTED_BIT).to_bytes(8, "little") + bytes(64))
    assert processor.read("pl0_ssp") == processor.read("u_cet") == processor.read("pl3_ssp") == 0
    processor.xrstors(area)
    assert processor.read("pl0_ssp") == 0xFFFF8000
    assert processor.read("u_cet") == 1
    assert processor.read("pl3_ssp") == 0x7FFF0008


def test_user_instructions_leave_supervisor_components_out(processor):
    processor.write("pl0_ssp", 8)
    for save in (processor.xsave, processor.xsavec):
        area = bytearray(ROOM)
        save(area)
        assert not int.from_bytes(area[512:520], "little") & processor.xss
        processor.xrstor(area)
    assert processor.read("pl0_ssp") == 8
    area[520:528] = (COMPACTED_BIT | mask_of(C.CET_S)).to_bytes(8, "little")
    assert fault_of(processor.xrstor, area).rule == "XS009"


def test_above_cpl_0_both_are_refused(processor):
    processor.cpl = 3
    assert fault_of(processor.xsaves, bytearray(ROOM)).vector == 13
    assert fault_of(processor.xrstors, bytearray(ROOM)).vector == 13
    assert fault_of(processor.xsetbv, 0, 3).vector == 13
    assert fault_of(processor.wrmsr, IA32_XSS, 0).vector == 13
    assert fault_of(processor.rdmsr, IA32_XSS).vector == 13


def test_xrstors_takes_the_compacted_format_alone(processor):
    assert fault_of(processor.xrstors, bytearray(ROOM)).rule == "XS014"


@pytest.mark.parametrize(
    ("component", "data"),
    [
        (C.CET_U, (0x40).to_bytes(16, "little")),
        (C.CET_U, (0xC00).to_bytes(16, "little")),
        (C.CET_U, bytes(8) + (2).to_bytes(8, "little")),
        (C.CET_S, bytes(16) + (1).to_bytes(8, "little")),
    ],
)
def test_what_shadow_stacks_do_not_take_is_refused(processor, component, data):
    area = bytearray(ROOM)
    processor.xsaves(area)
    area[512:520] = mask_of(component).to_bytes(8, "little")
    area[place(processor, component)] = data
    assert fault_of(processor.xrstors, area).rule == "XS019"
    processor.xrstors(area, ~mask_of(component))


def test_reserved_bits_of_a_pasid_are_refused(processor):
    processor.write("pasid", 0x8000_1234)
    area = bytearray(ROOM)
    processor.xsaves(area)
    processor.xrstors(area)
    area[place(processor, C.PASID).start + 4] = 1
    assert fault_of(processor.xrstors, area).vector == 13


def test_saving_processor_trace_stops_it_and_restoring_needs_it_stopped(processor):
    processor.write("rtit_ctl", 0x2001)
    area = bytearray(ROOM)
    processor.xsaves(area, ~mask_of(C.PT))
    assert processor.read("rtit_ctl") == 0x2001
    assert fault_of(processor.xrstors, area).vector == 13
    processor.xsaves(area)
    assert area[place(processor, C.PT)][:2] == b"\x01\x20"
    assert processor.read("rtit_ctl") == 0x2000
    processor.xrstors(area)
    assert processor.read("rtit_ctl") == 0x2001


def test_reserved_bytes_of_processor_trace_are_refused(processor):
    processor.write("rtit_status", 1)
    area = bytearray(ROOM)
    processor.xsaves(area)
    area[place(processor, C.PT).start + 72] = 1
    assert fault_of(processor.xrstors, area).vector == 13


def test_saving_user_interrupts_clears_their_vector_and_restoring_needs_it_clear(processor):
    processor.write("uintr_uinv", 0xEC)
    processor.write("uintr_handler", 0x401000)
    area = bytearray(ROOM)
    processor.xsaves(area)
    assert processor.read("uintr_uinv") == 0
    assert processor.read("uintr_handler") == 0x401000
    processor.xrstors(area)
    assert processor.read("uintr_uinv") == 0xEC
    assert fault_of(processor.xrstors, area).vector == 13


def test_components_whose_initial_values_are_not_zeros():
    processor = Processor(Cpu.catalog("granite-rapids"))
    processor.wrmsr(IA32_XSS, mask_of(C.HWP))
    assert processor.read("hwp_request") == 0x8000FF01
    processor.write("hwp_request", 0)
    area = bytearray(ROOM)
    processor.xsaves(area)
    assert int.from_bytes(area[512:520], "little") == mask_of(C.HWP)
    area[512:520] = bytes(8)
    processor.xrstors(area)
    assert processor.read("hwp_request") == 0x8000FF01


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("zen5", 0), ("zen5", 2), ("zen5", 5), ("zen5", 0x27), ("zen5", 0xE3), ("zen5", 0x807)),
        *(("skylake-sp", 0xB), ("skylake-sp", 0x10007), ("sapphire-rapids", 0x20007), ("haswell", 0xE7)),
    ],
)
def test_what_xsetbv_refuses(name, value):
    processor = Processor(Cpu.catalog(name))
    assert fault_of(processor.xsetbv, 0, value).vector == 13
    assert processor.xgetbv(0) == 1


def test_xsetbv_and_xgetbv_know_one_register_each(processor):
    assert fault_of(processor.xsetbv, 1, 3).vector == 13
    assert fault_of(processor.xgetbv, 2).vector == 13
    assert fault_of(Processor(Cpu.catalog("haswell")).xgetbv, 1).vector == 13
    processor.osxsave = False
    assert fault_of(processor.xgetbv, 0).vector == fault_of(processor.xsave, bytearray(ROOM)).vector == 6


def test_without_xsave_there_are_neither():
    cpu = Cpu.catalog("zen4")
    old = Processor(replace(cpu, xcr0=0, xss=0, geometry={}, features=cpu.features & {"FPU", "FXSR", "SSE"}))
    assert fault_of(old.xgetbv, 0).mnemonic == fault_of(old.xsetbv, 0, 3).mnemonic == "#UD"


def test_what_xcr0_loses_stays_and_cannot_be_reached():
    processor = Processor(Cpu.catalog("zen5"))
    processor.xsetbv(0, 0xE7)
    processor.write("zmm20", 7)
    processor.xsetbv(0, 7)
    assert fault_of(processor.write, "zmm20", 8).vector == 6
    processor.xrstor(bytearray(ROOM))
    processor.xsetbv(0, 0xE7)
    assert processor.read("zmm20") == 7


def test_xss_takes_the_bits_that_cpuid_has():
    processor = Processor(Cpu.catalog("zen5"))
    assert fault_of(processor.wrmsr, IA32_XSS, mask_of(C.LBR)).vector == 13
    processor.wrmsr(IA32_XSS, mask_of(C.CET_U))
    assert processor.rdmsr(IA32_XSS) == mask_of(C.CET_U)
    assert fault_of(Processor(Cpu.catalog("haswell")).wrmsr, IA32_XSS, 0).vector == 13


def test_pkru_is_a_component_like_others_and_initialised_as_zero(processor):
    processor.write("pkru", 0x55555554)
    area = bytearray(ROOM)
    processor.xsave(area, mask_of(C.PKRU))
    assert area[2688:2696] == bytes.fromhex("5455555500000000")
    area[512:520] = bytes(8)
    processor.xrstor(area, mask_of(C.PKRU))
    assert processor.read("pkru") == 0
