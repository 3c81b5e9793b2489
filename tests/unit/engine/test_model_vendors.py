"""Where processors differ: each parameter of the model changes what it says it does, and has a source."""

from __future__ import annotations

import dataclasses

import pytest

from fpstate.arch import Component, Cpu
from fpstate.engine.model import SOURCES, Behaviour, Place, Pointers, Processor
from fpstate.errors import ImageError, ProcessorFault

ROOM = 2752
NOTHING = bytes(18)


def processor_with(**parameters) -> Processor:
    """Zen 5 with everything but these parameters as it is."""
    cpu = Cpu.catalog("zen5")
    processor = Processor(cpu, dataclasses.replace(Behaviour.of(cpu), **parameters))
    processor.xsetbv(0, 0xE7)
    return processor


def image_of_x87(*, pending: bool, fip: int = 0x1234, present: int = 1) -> bytearray:
    """A standard area with x87 alone: an invalid operation flagged, masked or not, and pointers."""
    area = bytearray(ROOM)
    area[0:4] = bytes.fromhex("7e030100" if pending else "7f030100")
    area[6:8] = (0x7AB).to_bytes(2, "little")
    area[8:16] = fip.to_bytes(8, "little")
    area[16:24] = (0x5678).to_bytes(8, "little")
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[512:520] = present.to_bytes(8, "little")
    return area


def test_every_parameter_has_a_source_and_every_source_a_parameter():
    assert set(SOURCES) == {field.name for field in dataclasses.fields(Behaviour)}


def test_vendors_differ_as_their_manuals_and_measurements_say():
    of = {
        name: Behaviour.of(Cpu.catalog(name)) for name in ("zen5", "bulldozer", "haswell", "sapphire-rapids")
    }
    assert of["zen5"].tracks_values
    assert not of["sapphire-rapids"].tracks_values
    assert of["zen5"].pointers is Pointers.ZEROED
    assert of["bulldozer"].pointers is Pointers.UNTOUCHED
    assert of["haswell"].pointers is of["sapphire-rapids"].pointers is Pointers.KEPT
    assert of["zen5"].selectors
    assert not of["haswell"].selectors


@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize("pointers", Pointers)
def test_x87_pointers_count_while_an_exception_is_pending_and_else_as_the_vendor_says(pointers, pending):
    processor = processor_with(pointers=pointers)
    loaded = image_of_x87(pending=pending)
    processor.xrstor(loaded)
    area = bytearray(b"\xcc" * ROOM)
    processor.xsave(area)
    expected = {
        Pointers.KEPT: loaded[6:24],
        Pointers.ZEROED: NOTHING,
        Pointers.UNTOUCHED: b"\xcc" * 18,
    }[pointers]
    assert area[6:24] == (loaded[6:24] if pending else expected)


def test_untouched_pointers_of_another_context_leak():
    """CVE-2006-1056: what one context left behind, the next one sees when an exception comes up in it."""
    processor = processor_with(pointers=Pointers.UNTOUCHED)
    processor.xrstor(image_of_x87(pending=True, fip=0x5EC4E7))
    processor.xrstor(image_of_x87(pending=False, fip=0))
    processor.fldcw(0x037E)
    area = bytearray(ROOM)
    processor.xsave(area)
    assert int.from_bytes(area[8:16], "little") == 0x5EC4E7


@pytest.mark.parametrize(("bits", "fip"), [(48, 0xFFFF_8000_0000_0001), (57, 0xFF00_8000_0000_0001)])
def test_pointers_are_as_wide_as_linear_addresses(bits, fip):
    processor = processor_with(fip_bits=bits, fdp_bits=bits)
    processor.xrstor(image_of_x87(pending=True, fip=0x0100_8000_0000_0001))
    assert processor.read("fip") == fip


@pytest.mark.parametrize(("selectors", "expected"), [(True, 0x33), (False, 0)])
def test_selectors_are_kept_by_the_forms_without_rex_w(selectors, expected):
    processor = processor_with(selectors=selectors)
    area = image_of_x87(pending=True, fip=0x33_0040_1000)
    processor.xrstor(area, wide=False)
    saved = bytearray(ROOM)
    processor.xsave(saved, wide=False)
    assert int.from_bytes(saved[8:12], "little") == 0x0040_1000
    assert int.from_bytes(saved[12:16], "little") == expected
    processor.xsave(saved)
    assert int.from_bytes(saved[8:16], "little") == 0x0040_1000


def test_in_use_goes_by_value_or_by_writing():
    for by_value in (True, False):
        processor = processor_with(tracks_values=by_value)
        area = bytearray(ROOM)
        area[24:28] = (0x1F80).to_bytes(4, "little")
        area[512:520] = (0xE6).to_bytes(8, "little")
        processor.xrstor(area)
        assert processor.xgetbv(1) == (0 if by_value else 0xE6)
        processor.vzeroall()
        processor.xrstor(bytes(ROOM), 0xE0)
        assert processor.xgetbv(1) == 0


def test_zeroing_a_register_is_noticed_and_moving_zeros_is_not():
    processor = processor_with(tracks_values=True)
    processor.move_vector(20, b"\1" * 64)
    processor.move_vector(20, bytes(64))
    assert processor.xgetbv(1) == 0x80
    processor.move_vector(20, b"\1" * 64)
    processor.zero_vector(20)
    assert processor.xgetbv(1) == 0
    processor.move_vector(3, b"\1" * 64)
    processor.zero_vector(3)
    assert processor.xgetbv(1) == 0


def test_mxcsr_counts_as_sse_in_use_but_not_in_the_standard_format():
    processor, area = processor_with(), bytearray(ROOM)
    processor.ldmxcsr(0x1F81)
    assert processor.xgetbv(1) == 2
    processor.xsave(area)
    assert area[512:520] == bytes(8)
    processor.xsavec(area)
    assert area[512] == 2


def test_a_state_of_zeros_may_be_in_use_but_no_other_may_be_unused():
    processor = processor_with()
    processor.write("k1", 1)
    processor.assume_in_use(0x66)
    area = bytearray(ROOM)
    processor.xsavec(area)
    assert area[512] == 0x66
    with pytest.raises(ImageError, match="not initial: 0x20"):
        processor.assume_in_use(0x42)


@pytest.mark.parametrize("optimises", [True, False])
def test_what_was_not_modified_since_it_was_restored_from_here_is_left_out(optimises):
    processor = processor_with(modified_optimisation=optimises)
    area = bytearray(ROOM)
    area[160:416] = b"\x11" * 256
    area[576:832] = b"\x22" * 256
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[512] = 6
    processor.xrstor(area, address=0x1000)
    area[160] = area[576] = 0xEE
    processor.move_xmm(1, bytes(16))
    processor.xsaveopt(area, address=0x1000)
    assert area[160] == 0x11
    assert area[576] == (0xEE if optimises else 0x22)


@pytest.mark.parametrize("change", ["address", "cpl", "non_root", "format", "unknown"])
def test_the_optimisation_needs_the_same_area_level_and_format(change):
    processor = processor_with()
    processor.cpl = 3
    area = bytearray(ROOM)
    if change == "format":
        area[520:528] = (1 << 63 | 6).to_bytes(8, "little")
    area[576:832] = b"\x22" * 256
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[512] = 4
    processor.xrstor(area, 6, address=None if change == "unknown" else 0x1000)
    area[576] = 0xEE
    if change == "cpl":
        processor.cpl = 0
    processor.non_root = change == "non_root"
    processor.xsaveopt(area, 6, address=0x2000 if change == "address" else 0x1000)
    assert area[576] == 0x22


def test_xsaves_needs_the_same_layout():
    for other, kept in ((0xE7, 0xEE), (0x7, 0x22)):
        processor = processor_with()
        processor.move_vector(0, b"\x22" * 32)
        area = bytearray(ROOM)
        processor.xsaves(area)
        processor.xrstors(area, address=0x1000)
        area[576] = 0xEE
        processor.xsaves(area, other, address=0x1000)
        assert area[576] == kept


def test_zen_2s_protection_keys_without_keys_are_64_bytes_wide():
    processor = Processor(Cpu.catalog("zen2"))
    processor.xsetbv(0, 0x207)
    assert len(processor.file.values[Component.PKRU]) == 64
    assert Processor.under_linux(processor.cpu).xcr0 == 7


# Intel's processors, as an Emerald Rapids was measured; the recordings in tests/replay have it all


@pytest.fixture
def intel() -> Processor:
    processor = Processor.under_linux(Cpu.catalog("emerald-rapids"))
    processor.xfd = 0
    return processor


def test_fip_is_extended_and_fdp_is_not(intel):
    area = image_of_x87(pending=False, fip=0x1122334455667788).ljust(11008, b"\0")
    area[16:24] = bytes.fromhex("b8d6cc955cb05121")
    intel.xrstor(area, 1)
    assert intel.read("fip") == 0xFF22334455667788
    assert intel.read("fdp") == 0x2151B05C95CCD6B8


def test_linear_addresses_are_57_bits_wide_where_la57_is():
    assert Behaviour.of(Cpu.catalog("emerald-rapids")).fip_bits == 57
    assert Behaviour.of(Cpu.catalog("haswell")).fip_bits == 48


@pytest.mark.parametrize("register", [3, 11])
def test_outside_64_bit_mode_in_use_tells_of_the_lower_registers(intel, register):
    intel.move_vector(register, b"\1" * 32)
    area = bytearray(11008)
    intel.long_mode = False
    intel.xsavec(area)
    assert area[512] == (6 if register < 8 else 0)
    intel.long_mode = True
    assert intel.xgetbv(1) == 6


def test_a_restore_outside_64_bit_mode_leaves_the_upper_registers_in_use(intel):
    for register in (3, 11, 20):
        intel.move_vector(register, b"\1" * 64)
    intel.long_mode = False
    intel.xrstor(bytes(24) + (0x1F80).to_bytes(4, "little") + bytes(10980))
    intel.long_mode = True
    assert intel.xgetbv(1) == 0xC6
    assert (intel.read("xmm3"), intel.read("ymm3h")) == (0, 0)
    assert intel.read("xmm11") == int.from_bytes(b"\1" * 16, "little")


WRITES = {
    "FNINIT": (lambda cpu: cpu.fninit(), 1),
    "LDMXCSR of its initial value": (lambda cpu: cpu.ldmxcsr(0x1F80), 2),
    "VPXOR of an XMM register": (lambda cpu: cpu.zero_vector(3), 2),
    "VPXORQ of ZMM20": (lambda cpu: cpu.zero_vector(20), 0x80),
    "VMOVUPS of YMM": (lambda cpu: cpu.move_vector(3, bytes(32)), 6),
    "KMOVQ of 0": (lambda cpu: cpu.kmov(1, bytes(8)), 0x20),
    "WRPKRU of 0": (lambda cpu: cpu.wrpkru(0), 0x200),
    "FXRSTOR of initial values": (
        lambda cpu: cpu.fxrstor(b"\x7f\3" + bytes(22) + b"\x80\x1f" + bytes(486)),
        3,
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_is_in_use_whatever_the_value(intel, write):
    perform, bits = WRITES[write]
    perform(intel)
    assert intel.xgetbv(1) == bits
    intel.xrstor(bytes(24) + (0x1F80).to_bytes(4, "little") + bytes(10980))
    assert intel.xgetbv(1) == 0


def test_a_refused_compacted_restore_has_loaded_a_part_and_leaves_pkru(intel):
    intel.write_all({"k1": 1, "pkru": 0x30, "xmm3": 3, "zmm17": 17, "mxcsr": 0x1F80})
    area = bytearray(11008)
    area[24:28] = (1 << 16).to_bytes(4, "little")
    area[160:416] = b"\7" * 256
    area[512:520] = (0x82).to_bytes(8, "little")
    area[520:528] = (1 << 63 | 0x602E7).to_bytes(8, "little")
    with pytest.raises(ProcessorFault, match="XS017"):
        intel.xrstor(area)
    assert intel.read("xmm3") == int.from_bytes(b"\7" * 16, "little")
    assert [intel.read(name) for name in ("k1", "pkru", "zmm17", "mxcsr")] == [0, 0x30, 17, 0x1F80]


def test_a_compacted_restore_reaches_for_what_is_absent(intel):
    area = bytearray(24) + (0x1F80).to_bytes(4, "little") + bytes(548)
    area[520:528] = (1 << 63 | 0xE7).to_bytes(8, "little")
    with pytest.raises(ProcessorFault, match="XS002"):
        intel.xrstor(area)
    intel.xrstor(area, 3)


def test_four_bytes_of_pkru_are_saved(intel):
    intel.wrpkru(0x5555_5554)
    area = bytearray(b"\xcc" * 11008)
    intel.xsave(area, 0x200)
    assert area[2688:2696] == bytes.fromhex("54555555 cccccccc")


def test_fop_and_fdp_are_set_by_an_unmasked_exception_alone(intel):
    place = Place(fip=0x401000, fdp=0x602000, opcode=0x32F)
    intel.fld80(bytes(10), place=place)
    assert [intel.read(name) for name in ("fip", "fdp", "fop")] == [0x401000, 0, 0]
    intel.fninit()
    intel.fldcw(0x037E)
    intel.fstp0(place=Place(fip=0x401010, opcode=0x5D8))
    assert [intel.read(name) for name in ("fip", "fdp", "fop")] == [0x401010, 0, 0x5D8]
    with pytest.raises(ProcessorFault, match="#MF"):
        intel.fld80(bytes(10))
