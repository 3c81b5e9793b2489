"""Modes and single instructions: alignment, CR0.TS, 64-bit mode, x87, MMX and vector writes."""

from __future__ import annotations

import pytest

from fpstate.arch import Cpu
from fpstate.engine.model import Processor
from fpstate.errors import ProcessorFault, RegisterError
from fpstate.image.initial import initial_bytes

ROOM = 2752


@pytest.fixture
def processor() -> Processor:
    return Processor.under_linux(Cpu.catalog("zen5"))


def fault_of(action, *arguments, **options) -> ProcessorFault:
    with pytest.raises(ProcessorFault) as caught:
        action(*arguments, **options)
    return caught.value


def test_a_processor_starts_as_after_power_up():
    processor = Processor(Cpu.catalog("sapphire-rapids"))
    assert (processor.xgetbv(0), processor.xss, processor.xfd, processor.cpl) == (1, 0, 0, 0)
    assert processor.read("fctrl") == 0x037F
    assert processor.read("mxcsr") == 0x1F80
    assert fault_of(processor.write, "ymm0", 1).vector == 6


def test_linux_enables_what_it_knows():
    processor = Processor.under_linux(Cpu.catalog("sapphire-rapids"))
    assert (processor.xcr0, processor.xss, processor.xfd, processor.cpl) == (0x602E7, 0x9C00, 0x40000, 3)


@pytest.mark.parametrize("offset", [1, 8, 16, 32, 63])
def test_misaligned_areas_are_refused(processor, offset):
    area = bytearray(ROOM)
    for action in (processor.xsave, processor.xsavec, processor.xsaveopt, processor.xrstor):
        assert fault_of(action, area, address=0x1000 + offset).vector == 13
        processor.alignment_check = True
        assert fault_of(action, area, address=0x1000 + offset).vector == 17
        processor.alignment_check = False
    if offset % 16:
        assert fault_of(processor.fxsave, area, address=0x1000 + offset).rule == "XS006"
    else:
        processor.fxsave(area, address=0x1000 + offset)
    assert not any(area[512:])


@pytest.mark.parametrize("length", [0, 511, 575, 576, 831, 2431])
def test_nothing_is_written_where_memory_ends_too_early(processor, length):
    processor.write("zmm31", 5)
    area = bytearray(b"\xcc" * length)
    for action in (processor.xsave, processor.xsaveopt, processor.xsavec):
        fault = fault_of(action, area)
        assert (fault.vector, fault.rule) == (14, "XS002")
        assert area == b"\xcc" * length


def test_xsavec_of_initial_registers_needs_no_more_than_the_header(processor):
    area = bytearray(b"\xcc" * 576)
    processor.xsavec(area)
    assert area == b"\xcc" * 512 + bytes(8) + (1 << 63 | 0x2E7).to_bytes(8, "little") + b"\xcc" * 48


def test_an_instruction_that_is_not_there_is_undefined():
    processor = Processor.under_linux(Cpu.catalog("haswell"))
    assert fault_of(processor.xsavec, bytearray(ROOM)).vector == 6
    assert fault_of(processor.xsaves, bytearray(ROOM)).vector == 6
    assert fault_of(processor.xrstors, bytearray(ROOM)).vector == 6


def test_a_register_that_is_not_there_is_an_error_of_its_own(processor):
    with pytest.raises(RegisterError):
        processor.read("tmm0")
    with pytest.raises(RegisterError):
        processor.read("xmm99")


def test_task_switched_stops_x87_and_vectors_until_it_is_cleared(processor):
    processor.task_switched = True
    for action in (processor.fninit, processor.vzeroupper, processor.emms):
        assert fault_of(action).vector == 7
    assert fault_of(processor.fxsave, bytearray(ROOM)).vector == 7
    processor.task_switched = False
    processor.fninit()


def test_outside_64_bit_mode_the_upper_registers_stay_where_they_are(processor):
    for name in ("xmm7", "xmm8", "ymm8", "zmm7", "zmm8", "zmm16"):
        processor.write(name, processor.read(name) | 0x77)
    processor.write("zmm8", 0x88 << 384)
    processor.long_mode = False
    area = bytearray(b"\xcc" * ROOM)
    processor.xsave(area)
    assert area[272:288] == (0x77).to_bytes(16, "little")
    assert area[288:416] == b"\xcc" * 128
    assert area[704:832] == b"\xcc" * 128
    assert area[1152:1408] == b"\xcc" * 256
    assert area[1408:2432] == b"\xcc" * 1024
    assert area[512] & 0x80
    assert processor.xgetbv(1) & 0x80
    header = bytes(24) + (0x1F80).to_bytes(4, "little")
    processor.xrstor(header.ljust(ROOM, b"\0"))
    assert processor.read("xmm7") == 0
    assert processor.read("zmm8") == 0x88 << 384
    assert processor.read("zmm16") == 0x77


def test_outside_64_bit_mode_the_manual_has_zmm16_to_31_initial():
    processor = Processor(Cpu.catalog("sapphire-rapids"))
    processor.xsetbv(0, 0xE7)
    processor.write("zmm16", 1)
    assert processor.xgetbv(1) == 0x80
    processor.long_mode = False
    assert processor.xgetbv(1) == 0


def test_a_restore_outside_64_bit_mode_makes_a_later_save_in_it_leave_registers_out(processor):
    """XRSTOR_INFO has no mode in it: measured on Zen 5."""
    area = bytearray(ROOM)
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[160:416] = b"\x11" * 256
    area[512] = 2
    processor.move_xmm(9, b"\x99" * 16)
    processor.long_mode = False
    processor.xrstor(area, 2, address=0x1000)
    processor.long_mode = True
    processor.xsaveopt(area, 2, address=0x1000)
    assert processor.read("xmm9") == int.from_bytes(b"\x99" * 16, "little")
    assert area[304:320] == b"\x11" * 16


def test_fninit_keeps_the_registers_and_turns_the_stack(processor):
    processor.write("fstat", 7 << 11)
    processor.write("st0", 0x1234)
    processor.fninit()
    assert processor.read("st7") == 0x1234
    assert processor.read("ftag_abridged") == 0
    assert processor.xgetbv(1) & 1


def test_a_pending_exception_stops_the_instructions_that_wait(processor):
    area = bytearray(ROOM)
    area[0:4] = bytes.fromhex("7e030100")
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[512] = 1
    processor.xrstor(area)
    assert processor.read("fstat") == 0x8081
    for action, arguments in (
        *((processor.fldcw, (0x037F,)), (processor.emms, ())),
        (processor.move_mmx, (0, bytes(8))),
    ):
        assert fault_of(action, *arguments).vector == 16
    processor.fnclex()
    processor.fldcw(0x0FFF)
    assert processor.read("fctrl") == 0x0F7F


def test_mmx_by_instruction_and_by_name_is_the_same(processor):
    other = Processor.under_linux(processor.cpu)
    for each in (processor, other):
        each.write("fstat", 5 << 11)
        each.write("st2", 0xABCD)
    processor.move_mmx(3, (0x42).to_bytes(8, "little"))
    other.write("mm3", 0x42)
    assert processor.file.values[0] == other.file.values[0]


def test_vector_writes_clear_or_keep_what_lies_above(processor):
    processor.move_vector(4, b"\x44" * 64)
    processor.move_xmm(4, b"\x55" * 16)
    assert processor.read("zmm4") == int.from_bytes(b"\x55" * 16 + b"\x44" * 48, "little")
    processor.move_vector(4, b"\x66" * 32)
    assert processor.read("zmm4") == int.from_bytes(b"\x66" * 32, "little")
    processor.move_vector(20, b"\x77" * 16)
    processor.vzeroupper()
    assert processor.read("zmm4") == int.from_bytes(b"\x66" * 16, "little")
    assert processor.read("zmm20") == int.from_bytes(b"\x77" * 16, "little")
    processor.kmov(7, b"\x01" * 8)
    processor.vzeroall()
    assert processor.xgetbv(1) == 0xA0


def test_reserved_bits_of_mxcsr_are_refused(processor):
    assert fault_of(processor.ldmxcsr, 0x10000).rule == "XS017"
    processor.ldmxcsr(0x21F80)
    assert fault_of(Processor.under_linux(Cpu.catalog("haswell")).ldmxcsr, 0x21F80).vector == 13


def test_an_image_of_the_registers_can_be_taken_and_a_snapshot_put_back(processor):
    processor.write("zmm9", 1 << 500)
    processor.write("mxcsr", 0x1FC0)
    kept = processor.snapshot()
    image = processor.image()
    assert image.registers["zmm9"] == 1 << 500
    assert image.canonical().mask == 0x42
    processor.write("zmm9", 0)
    processor.file = kept
    assert processor.read("zmm9") == 1 << 500
    assert processor.read("mxcsr") == 0x1FC0


def test_reset_registers_are_the_initial_configuration(processor):
    for component, value in processor.file.values.items():
        assert value == initial_bytes(component, 0, len(value))


@pytest.mark.parametrize(
    ("register", "value"),
    [
        ("mxcsr", 0x21F80),
        ("u_cet", 0x3C0),
        ("u_cet", 0xC00),
        ("pl3_ssp", 2),
        ("pl0_ssp", 1),
        ("pasid", 1 << 40),
    ],
)
def test_registers_do_not_take_what_no_restore_would_bring_back(register, value):
    processor = Processor.under_linux(Cpu.catalog("sapphire-rapids"))
    before = processor.read(register)
    with pytest.raises(ProcessorFault, match="#GP"):
        processor.write_all({"xmm0": 5, register: value})
    assert (processor.read(register), processor.read("xmm0")) == (before, 0)
