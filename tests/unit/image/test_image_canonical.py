"""Images are equal when their registers are, whatever the bytes."""

import pytest

from fpstate.arch.component import Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout, Place
from fpstate.image import Difference, Image, differences

INTEL = Cpu.catalog("ice-lake-sp")
AMD = Cpu.catalog("zen4")
FORMATS = pytest.mark.parametrize(
    "layout", [Layout.standard(INTEL), Layout.compacted(AMD)], ids=["intel-standard", "amd-compacted"]
)
IGNORED = {
    "FOP, FIP, FDP": range(6, 24),
    "byte 5": range(5, 6),
    "MXCSR_MASK": range(28, 32),
    "pad of the stack": [32 + 16 * slot + byte for slot in range(8) for byte in range(10, 16)],
    "reserved and software bytes": range(416, 512),
    "reserved header": range(528, 576),
}


def filled(layout: Layout) -> Image:
    """An image with a value of its own in every register, and no exception pending."""
    image = Image.initial(layout)
    registers = image.registers
    for number, name in enumerate(registers.names(widest=True)):
        size = registers.size_of(name)
        registers[name] = int.from_bytes(
            bytes((number * 7 + 13 * byte) & 0x7F for byte in range(size)), "little"
        )
    registers["fctrl"], registers["fstat"], registers["mxcsr"] = 0x37F, 6 << 11, 0x1FA0
    return image


def ignored(layout: Layout) -> set[int]:
    """Offsets of bytes that are no register's: the fixed ones and the gaps between components."""
    covered = set(range(576))
    for place in layout.places:
        size = 4 if place.component == Component.PKRU else place.size
        covered |= set(range(place.offset, place.offset + size))
    return set(range(layout.size)) - covered | {byte for each in IGNORED.values() for byte in each}


@FORMATS
def test_every_byte_that_counts_counts_and_no_other(layout: Layout) -> None:
    original = filled(layout)
    reference, dont_care = original.canonical(), ignored(layout)
    for offset in set(range(layout.size)) - set(range(512, 528)):
        flipped = original.copy()
        flipped.store.view[offset] ^= 0x04
        assert (flipped.canonical() == reference) == (offset in dont_care), offset


@FORMATS
def test_every_bit_of_the_control_registers_counts_but_those_that_a_restore_decides(layout: Layout) -> None:
    """ES and B of FSW, which follow from flags and masks, and the reserved bits of FCW."""
    original = filled(layout)
    for offset, bits in ((0, 16), (2, 16), (4, 8), (24, 32)):
        for bit in range(bits):
            flipped = original.copy()
            flipped.store.view[offset + bit // 8] ^= 1 << bit % 8
            decided = (offset == 2 and bit in (7, 15)) or (offset == 0 and bit in (6, 7, 13, 14, 15))
            assert (flipped == original) == decided, (offset, bit)


def test_intel_standard_and_amd_compacted_images_of_the_same_values_are_equal() -> None:
    intel, amd = filled(Layout.standard(INTEL)), filled(Layout.compacted(AMD))
    assert intel.to_bytes() != amd.to_bytes()
    assert intel == amd
    assert intel.canonical() == amd.canonical()
    assert hash(Image(intel.to_bytes(), intel.layout)) == hash(Image(amd.to_bytes(), amd.layout))
    assert differences(intel, amd) == []
    amd.registers["zmm9"] ^= 1 << 400
    assert intel != amd
    (difference,) = differences(intel, amd)
    assert difference.register == "zmm9"
    assert difference.a ^ difference.b == 1 << 400


def test_the_in_use_bitmap_is_a_hint() -> None:
    written, absent = Image.initial(Layout.standard(AMD)), Image.initial(Layout.standard(AMD))
    for name in ("zmm0", "zmm16", "k0", "pkru", "fctrl"):
        written.registers[name] = written.registers[name]
    assert written.xstate_bv == AMD.user_mask
    assert written.in_use == 0
    assert written == absent


def test_a_larger_layout_with_nothing_more_in_it_is_equal() -> None:
    small, large = Image.initial(Layout.standard(Cpu.catalog("haswell"))), Image.initial(Layout.standard(AMD))
    small.registers["ymm3"] = large.registers["ymm3"] = 3
    assert small == large
    large.registers["zmm3h"] = 1
    assert small != large
    assert [(each.register, each.a, each.b) for each in differences(small, large)] == [
        ("zmm3", 3, 3 | 1 << 256)
    ]


@FORMATS
def test_the_x87_pointers_count_only_while_an_exception_is_pending(layout: Layout) -> None:
    quiet, other = Image.initial(layout), Image.initial(layout)
    for name in ("fop", "fip", "fdp"):
        other.registers[name] = 0x123
    assert quiet == other
    assert other.in_use == 0
    assert quiet.canonical(exact=True) != other.canonical(exact=True)
    assert {each.register for each in differences(quiet, other, exact=True)} == {"fop", "fip", "fdp"}
    for image in (quiet, other):
        image.registers["fctrl"], image.registers["fstat"] = 0x37B, 0x0004
    assert quiet != other
    assert {each.register for each in differences(quiet, other)} == {"fop", "fip", "fdp"}
    assert other.registers.in_use()["fip"] == 0x123


@FORMATS
def test_es_and_b_in_memory_decide_nothing(layout: Layout) -> None:
    claims, admits = Image.initial(layout), Image.initial(layout)
    claims.registers["fstat"] = 0x8080
    claims.registers["fip"] = 1
    assert claims == Image.initial(layout)
    for image, status in ((claims, 0x8084), (admits, 0x0004)):
        image.registers["fctrl"], image.registers["fstat"], image.registers["fip"] = 0x37B, status, 1
    assert claims == admits
    assert admits.registers.canonical("fstat") == 0x8084


def test_mxcsr_counts_by_the_rule_of_the_format() -> None:
    for layout in (Layout.standard(AMD), Layout.compacted(AMD)):
        for present, states_mxcsr in (
            (0, False),
            (mask_of(Component.AVX), layout.format is Format.STANDARD),
            (mask_of(Component.SSE), True),
            (mask_of(Component.X87, Component.OPMASK), False),
        ):
            image = Image.initial(layout)
            image.store.view[24:28] = (0x1F81).to_bytes(4, "little")
            image.store.view[512:520] = present.to_bytes(8, "little")
            expected = 0x1F81 if states_mxcsr else 0x1F80
            assert image.registers["mxcsr"] == expected
            assert bool(image.canonical().mask & mask_of(Component.SSE)) == states_mxcsr


def test_exact_and_plain_states_are_different_things() -> None:
    image = Image.initial(Layout.standard(AMD))
    assert image.canonical() != image.canonical(exact=True)


def test_a_writable_image_has_no_hash() -> None:
    with pytest.raises(TypeError, match="canonical"):
        hash(Image.initial(Layout.standard(AMD)))
    assert isinstance(hash(Image.initial(Layout.standard(AMD)).canonical()), int)


def test_an_image_is_no_number() -> None:
    assert Image.initial(Layout.standard(AMD)) != 0


def test_a_component_without_a_name_is_compared_by_its_bytes() -> None:
    layout = Layout.from_places(Format.COMPACTED, [Place(0, 0, 160), Place(1, 160, 256), Place(20, 576, 64)])
    a, b = Image.initial(layout), Image.initial(layout)
    b.store.view[576] = 1
    assert a == b
    b.store.activate(20)
    assert a == b
    b.store.view[577] = 1
    assert a != b
    assert differences(a, b) == [Difference("component20", 0, 256)]
    assert b.in_use == 1 << 20


def test_zen_2s_oversized_pkru_is_the_same_register() -> None:
    wide, narrow = Layout.standard(Cpu.catalog("zen2"), 0x207), Layout.standard(Cpu.catalog("zen3"), 0x207)
    assert (wide.size_of(Component.PKRU), narrow.size_of(Component.PKRU)) == (64, 8)
    a, b = Image.initial(wide), Image.initial(narrow)
    a.registers["pkru"] = b.registers["pkru"] = 0x55555554
    assert a == b
