"""Registers by debugger name: what writing one means for the rest of the image."""

import pytest

from fpstate.arch.component import COMPONENTS, Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout, Place
from fpstate.errors import RegisterError
from fpstate.image import Float80, Image, Kind, Mxcsr, Registers, Rounding

ONE = 0x3FFF << 64 | 1 << 63
PI = 0x4000_C90FDAA22168C235
ZEN4 = Cpu.catalog("zen4")


def layouts(name: str) -> list[Layout]:
    cpu = Cpu.catalog(name)
    both = cpu.user_mask | cpu.supervisor_mask
    return [Layout.standard(cpu), Layout.compacted(cpu), Layout.compacted(cpu, both)]


ALL_LAYOUTS = [
    pytest.param(layout, id=f"{name}-{layout.format.value}-{layout.mask:x}")
    for name in Cpu.catalog_names()
    for layout in layouts(name)
]
FORMATS = pytest.mark.parametrize("layout", layouts("zen4")[:2], ids=["standard", "compacted"])


def poisoned(layout: Layout, xstate_bv: int = 0) -> Image:
    """An image full of leftovers behind an XSTATE_BV that disowns them."""
    data = bytearray(b"\xcc" * layout.size)
    data[512:576] = xstate_bv.to_bytes(8, "little") + layout.xcomp_bv.to_bytes(8, "little") + bytes(48)
    return Image(data, layout)


def value_for(registers: Registers, name: str) -> int:
    data = bytes(index * 37 + 11 & 0xFF for index in range(registers.size_of(name)))
    return int.from_bytes(data, "little")


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_every_register_of_every_layout_reads_what_was_written(layout: Layout) -> None:
    names = Image.initial(layout).registers.names()
    for name in names:
        registers = poisoned(layout).registers
        value = value_for(registers, name)
        if name == "ftag":
            registers["ftag"] = value = 0xFFFF
        registers[name] = value
        assert registers[name] == value, name


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_the_widest_registers_hold_everything_side_by_side(layout: Layout) -> None:
    image = poisoned(layout)
    registers = image.registers
    names = registers.names(widest=True)
    written = {name: value_for(registers, name) ^ index for index, name in enumerate(names)}
    for name, value in written.items():
        registers[name] = value
    written["ftag_abridged"] = registers["ftag_abridged"]
    assert {name: registers[name] for name in names} == written
    assert image.xstate_bv == layout.mask


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_leftovers_behind_a_clear_bit_never_show(layout: Layout) -> None:
    image = poisoned(layout)
    fresh = Image.initial(layout)
    assert dict(image.registers) == dict(fresh.registers)
    assert image == fresh
    assert image.registers.in_use() == {}


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_leftovers_never_come_alive_on_a_write(layout: Layout) -> None:
    names = Image.initial(layout).registers.names(widest=True)
    for name in names:
        image, fresh = poisoned(layout), Image.initial(layout)
        value = value_for(image.registers, name)
        image.registers[name] = value
        fresh.registers[name] = value
        assert image.xstate_bv == fresh.xstate_bv
        assert dict(image.registers) == dict(fresh.registers), name


@pytest.mark.parametrize("component", [Component.SSE, Component.AVX, Component.X87])
def test_mxcsr_is_initialised_before_a_neighbour_revives_it(component: Component) -> None:
    name = {Component.SSE: "xmm0", Component.AVX: "ymm0h", Component.X87: "st0"}[component]
    for layout in layouts("zen4"):
        image = poisoned(layout)
        image.registers[name] = 1
        assert (image.registers["mxcsr"], image.registers["mxcsr_mask"]) == (0x1F80, 0)


def test_the_negative_control_a_set_bit_does_show_the_bytes() -> None:
    layout = Layout.compacted(ZEN4)
    image = poisoned(layout, mask_of(Component.OPMASK))
    assert image.registers["k0"] == 0xCCCCCCCCCCCCCCCC


@FORMATS
def test_a_zmm_write_touches_its_three_components_and_no_more(layout: Layout) -> None:
    image = Image.initial(layout)
    registers = image.registers
    registers["zmm3"] = value_for(registers, "zmm3")
    low, upper, high = registers["xmm3"], registers["ymm3h"], registers["zmm3h"]
    assert registers["zmm3"] == low | upper << 128 | high << 256
    assert registers["ymm3"] == low | upper << 128
    assert image.xstate_bv == mask_of(Component.SSE, Component.AVX, Component.ZMM_HI256)
    registers["zmm31"] = 1 << 511
    assert (registers["zmm31h"], registers["ymm31"], registers["xmm31"]) == (1 << 255, 0, 0)


@FORMATS
def test_the_initial_value_may_be_written_back(layout: Layout) -> None:
    image = Image.initial(layout)
    for name in image.registers.names(widest=True):
        image.registers[name] = image.registers[name]
    assert image.registers.in_use() == {"ftag_abridged": 0xFF}
    image.registers["ftag"] = 0xFFFF
    assert image == Image.initial(layout)


def test_what_a_layout_holds_follows_from_its_components() -> None:
    held = {
        "zen1": ({"xmm15", "ymm15", "mxcsr", "mm7"}, {"xmm16", "zmm0", "k0", "pkru", "bnd0", "r16"}),
        "skylake-sp": ({"zmm31", "k7", "bnd3", "bndcfgu", "pkru"}, {"tmm0", "r16", "pl3_ssp"}),
        "sapphire-rapids": ({"tmm7", "tilecfg", "tile3_rows"}, {"bnd0", "r16"}),
        "apx-no-amx-model": ({"r16", "r31", "zmm16h"}, {"tmm0", "bnd0"}),
        "bulldozer": ({"lwp", "ymm0h"}, {"zmm0"}),
    }
    for name, (inside, outside) in held.items():
        names = set(Image.initial(Layout.standard(Cpu.catalog(name))).registers)
        assert inside <= names, name
        assert not outside & names, name
    zen4 = Image.initial(layouts("zen4")[2]).registers
    assert {"u_cet", "pl3_ssp", "pl0_ssp"} <= set(zen4)
    lunar_lake = Image.initial(layouts("lunar-lake")[2]).registers
    assert {"uintr_handler", "lbr_31_info", "hwp_request"} <= set(lunar_lake)


def test_a_register_needs_room_for_all_its_parts() -> None:
    no_avx = Image.initial(Layout.compacted(ZEN4, mask_of(Component.SSE, Component.ZMM_HI256)))
    assert "xmm0" in no_avx.registers
    assert "zmm0h" in no_avx.registers
    assert "ymm0" not in no_avx.registers
    with pytest.raises(RegisterError, match="AVX"):
        _ = no_avx.registers["zmm0"]
    assert set(no_avx.registers.names(widest=True)) == {
        "mxcsr",
        *(f"xmm{n}" for n in range(16)),
        *(f"zmm{n}h" for n in range(16)),
    }


def test_hdc_and_hwp_do_not_start_as_zeros() -> None:
    places = [Place(Component.HDC, 576, 8), Place(Component.HWP, 584, 8)]
    image = Image.initial(Layout.from_places(Format.COMPACTED, places))
    assert (image.registers["pm_ctl1"], image.registers["hwp_request"]) == (1, 0x8000FF01)
    image.registers["hwp_request"] = 0
    assert image.in_use == mask_of(Component.HWP)
    image.registers["hwp_request"], image.registers["pm_ctl1"] = 0x8000FF01, 1
    assert image.in_use == 0


def test_names_come_once_in_order_and_have_aliases() -> None:
    registers = Image.initial(Layout.standard(ZEN4)).registers
    names = list(registers)
    assert len(names) == len(set(names)) == len(registers)
    assert names[:9] == [*(f"st{n}" for n in range(8)), "fctrl"]
    assert names.index("xmm2") < names.index("xmm10") < names.index("ymm0") < names.index("zmm0")
    for alias, name in (
        ("fcw", "fctrl"),
        ("fsw", "fstat"),
        ("ftw", "ftag_abridged"),
        ("mxcsrmask", "mxcsr_mask"),
    ):
        assert registers[alias] == registers[name]
        assert alias not in names
    mpx = Image.initial(Layout.standard(Cpu.catalog("skylake-x"))).registers
    mpx["bnd1raw"] = (1 << 128) - 1
    assert mpx["bnd1"] == (1 << 128) - 1


@pytest.mark.parametrize(
    ("name", "value", "message", "help"),
    [
        ("zmm32", 0, "no such register", "zmm3"),
        ("XMM0", 0, "no such register", "xmm0"),
        ("tmm0", 0, "no room for TILEDATA", "PKRU"),
        ("xmm0", 1 << 128, "128 bits", ""),
        ("xmm0", -1, "128 bits", ""),
        ("st0", 1 << 80, "80 bits", ""),
        ("ftag", 1 << 16, "16 bits", ""),
        ("k0", 1.5, "1.5 is no unsigned integer", ""),
    ],
)
def test_what_cannot_be_written_is_refused_and_says_why(
    name: str, value: int, message: str, help: str
) -> None:
    image = Image.initial(Layout.standard(ZEN4))
    with pytest.raises(RegisterError, match=message) as caught:
        image.registers[name] = value
    assert caught.value.register == name
    assert help in caught.value.help
    assert image.xstate_bv == 0


def test_membership_and_get_follow_the_layout() -> None:
    registers = Image.initial(Layout.standard(ZEN4)).registers
    assert "zmm0" in registers
    assert "tmm0" not in registers
    assert 5 not in registers
    assert registers.get("tmm0") is None
    assert registers.get("tmm0", 7) == 7
    assert registers.get("mxcsr") == 0x1F80


@FORMATS
def test_fninit_fld1_fldpi(layout: Layout) -> None:
    registers = Image.initial(layout).registers
    registers["fstat"] = 6 << 11
    registers["st0"] = PI
    registers["st1"] = ONE
    assert (registers.status_word.top, registers["ftag_abridged"], registers["ftag"]) == (6, 0xC0, 0x0FFF)
    assert (registers.st(0), registers.st(1)) == (Float80(PI), Float80(ONE))
    assert registers.st(2).kind is Kind.ZERO
    assert (registers["mm6"], registers["mm7"]) == (PI & (1 << 64) - 1, 1 << 63)


def test_the_full_tag_word_is_kept_abridged() -> None:
    registers = Image.initial(Layout.standard(ZEN4)).registers
    registers["ftag"] = 0x0FFF
    assert registers["ftag_abridged"] == 0xC0
    assert registers["ftag"] == 0x5FFF  # both hold zero
    registers["ftag_abridged"] = 0
    assert registers["ftag"] == 0xFFFF


@FORMATS
def test_an_mmx_write_acts_as_the_instruction_does(layout: Layout) -> None:
    registers = Image.initial(layout).registers
    registers["fstat"] = 6 << 11 | 0x4100
    registers["st0"], registers["st1"] = PI, ONE
    registers["mm2"] = 0x1122334455667788
    assert registers["fstat"] == 0x4100
    assert registers["ftag_abridged"] == 0xFF
    assert registers["st2"] == 0xFFFF_1122334455667788
    assert (registers["mm6"], registers["mm7"]) == (PI & (1 << 64) - 1, 1 << 63)
    assert (registers["st6"], registers["st7"]) == (PI, ONE)


def test_pad_bytes_of_the_stack_are_written_as_zeros() -> None:
    image = poisoned(Layout.standard(ZEN4), mask_of(Component.X87))
    image.registers["st1"] = ONE
    assert image.to_bytes()[48:64] == ONE.to_bytes(16, "little")


def test_the_pointers_are_one_value_in_two_halves() -> None:
    registers = Image.initial(Layout.standard(ZEN4)).registers
    registers["fip"] = 0x00007F12_34567890
    assert (registers["fioff"], registers["fiseg"]) == (0x34567890, 0x7F12)
    registers["fooff"], registers["foseg"] = 1, 2
    assert registers["fdp"] == 2 << 32 | 1
    assert registers["fop"] == 0


@FORMATS
def test_an_mxcsr_of_its_own_makes_sse_present(layout: Layout) -> None:
    image = Image.initial(layout)
    image.registers["mxcsr"] = 0x1F80
    assert image.xstate_bv == 0
    image.registers["mxcsr"] = int(Mxcsr(0x1F80).replace(rounding=Rounding.ZERO))
    assert image.xstate_bv == mask_of(Component.SSE)
    assert image.registers.mxcsr.rounding is Rounding.ZERO
    assert image.registers["xmm0"] == 0
    image.registers["mxcsr"] = 0x1F80
    assert image == Image.initial(layout)


def test_a_standard_mxcsr_beside_avx_alone_gets_its_sse_bit() -> None:
    layout = Layout.standard(ZEN4)
    image = Image.initial(layout)
    image.registers["ymm0h"] = 1
    assert image.xstate_bv == mask_of(Component.AVX)
    image.registers["mxcsr"] = 0x1F81
    assert image.xstate_bv == mask_of(Component.SSE, Component.AVX)


def test_typed_views_decode_the_control_registers() -> None:
    registers = Image.initial(Layout.standard(ZEN4)).registers
    assert registers.control_word.rounding is Rounding.NEAREST
    assert registers.mxcsr == Mxcsr(0x1F80)
    assert int(registers.status_word) == 0


def test_every_component_from_avx_on_has_its_fields_as_registers() -> None:
    layout = layouts("diamond-rapids-model")[2]
    names = set(Image.initial(layout).registers)
    for place in layout.places:
        if place.component > Component.SSE:
            assert {field.name for field in COMPONENTS[place.component].fields} <= names
    assert layout.format is Format.COMPACTED
