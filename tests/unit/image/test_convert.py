"""Conversion keeps registers, states losses, and refuses those that nobody has named."""

import pytest

from fpstate.arch import Component, Cpu, Format, Geometry, Layout, mask_of
from fpstate.errors import ConversionLoss, ImageError, RegisterError
from fpstate.image import Image
from fpstate.image.convert import Change, LostRegister, convert
from fpstate.image.legacy import FSAVE_LAYOUT, FXSAVE_LAYOUT
from fpstate.testing import build_cpu, build_image, build_layout, random_image

SPR = Layout.standard(Cpu.catalog("sapphire-rapids"))
ZEN4 = Layout.standard(Cpu.catalog("zen4"))
ZEN4_COMPACTED = build_layout("zen4", Format.COMPACTED)
PENDING = {"fctrl": 0x37B, "fstat": 0x0004}
"""A zero divide that is flagged and not masked."""


def test_intel_offsets_become_amd_offsets() -> None:
    image = build_image(SPR, {"zmm17": 17, "k3": 3, "pkru": 0x55555554})
    converted = convert(image, ZEN4)
    view = converted.image.store.view
    assert (view[1408 + 64], view[832 + 24], view[2432]) == (17, 3, 0x54)
    assert converted.image == image
    assert converted.losses == converted.changes == ()


def test_the_header_is_that_of_the_target() -> None:
    image = build_image(SPR, {"zmm17": 17})
    for layout in (ZEN4, ZEN4_COMPACTED):
        converted = convert(image, layout).image
        assert converted.xcomp_bv == layout.xcomp_bv
        assert converted.xstate_bv == mask_of(Component.HI16_ZMM)
        assert converted.reserved == bytes(48)


def test_absent_stays_absent_and_present_stays_present() -> None:
    image = build_image(SPR, present=mask_of(Component.PKRU, Component.X87), leftovers=b"\xcc")
    converted = convert(image, ZEN4_COMPACTED).image
    assert converted.xstate_bv == image.xstate_bv
    assert converted.registers.in_use() == {}
    assert 0xCC not in converted.to_bytes()


def test_what_the_target_cannot_hold_is_refused_and_named() -> None:
    image = build_image(SPR, {"tmm1": 7, "tilecfg": 1, "zmm3": 1 << 500})
    with pytest.raises(ConversionLoss) as caught:
        convert(image, ZEN4)
    assert caught.value.exit_code == 1
    assert caught.value.help.endswith("tilecfg,tiledata")
    config, data = caught.value.losses
    assert (config.component, data.component) == (Component.TILECFG, Component.TILEDATA)
    assert data.registers == (LostRegister("tmm1", 7, 0),)
    assert "TILEDATA (tmm1): the target has no place for it" in str(caught.value)


@pytest.mark.parametrize(
    "drop", [(17, 18), ("tilecfg", "TILEDATA"), ("tilecfg", "tmm1"), (Component.TILECFG, "tmm1")]
)
def test_what_was_named_is_dropped_and_recorded(drop: tuple[int | str, ...]) -> None:
    image = build_image(SPR, {"tmm1": 7, "tilecfg": 1, "xmm0": 5})
    converted = convert(image, ZEN4, drop=drop)
    assert [loss.component for loss in converted.losses] == [17, 18]
    assert converted.image.registers.in_use() == {"zmm0": 5}


def test_naming_one_of_two_lost_registers_is_not_enough() -> None:
    image = build_image(SPR, {"tmm1": 7, "tmm2": 7})
    with pytest.raises(ConversionLoss):
        convert(image, ZEN4, drop=["tmm1"])
    assert convert(image, ZEN4, drop=["tmm1", "tmm2"]).losses


def test_nothing_that_fits_is_dropped() -> None:
    image = build_image(SPR, {"pkru": 4})
    converted = convert(image, ZEN4, drop=[Component.PKRU])
    assert converted.losses == ()
    assert converted.image.registers["pkru"] == 4


def test_an_initial_component_is_no_loss() -> None:
    image = build_image(SPR, {"xmm0": 5}, present=mask_of(Component.TILEDATA, Component.TILECFG))
    converted = convert(image, ZEN4)
    assert converted.losses == ()
    (change,) = converted.changes
    assert (change.what, change.before ^ change.after) == ("XSTATE_BV", 0x60000)


def test_supervisor_components_cannot_go_into_the_standard_format() -> None:
    image = build_image(ZEN4_COMPACTED, {"pl3_ssp": 0x7FFF0000, "pl0_ssp": 8})
    with pytest.raises(ConversionLoss, match="standard format cannot hold supervisor"):
        convert(image, ZEN4)
    assert convert(image, build_layout("tiger-lake", Format.COMPACTED)).image == image


def test_mxcsr_that_avx_carries_keeps_its_value_in_the_compacted_format() -> None:
    image = build_image(ZEN4, {"ymm3h": 1}, leftovers=b"\xa5")
    image.store.view[24:32] = (0x1FA0).to_bytes(4, "little") + (0x2FFFF).to_bytes(4, "little")
    assert image.registers["mxcsr"] == 0x1FA0
    converted = convert(image, ZEN4_COMPACTED)
    assert converted.image.xstate_bv == mask_of(Component.SSE, Component.AVX)
    assert converted.image.registers["mxcsr"] == 0x1FA0
    assert converted.image.registers["xmm5"] == 0
    assert converted.image == image
    assert [change.what for change in converted.changes] == ["XSTATE_BV"]
    assert convert(converted.image, ZEN4).image == image


def test_a_compacted_image_without_sse_states_no_mxcsr_whatever_lies_there() -> None:
    image = build_image(ZEN4_COMPACTED, {"ymm3h": 1}, leftovers=b"\xa5")
    converted = convert(image, ZEN4)
    assert converted.image.registers["mxcsr"] == 0x1F80
    assert converted.image.store.view[24:28] == (0x1F80).to_bytes(4, "little")


def test_an_mxcsr_that_is_no_state_is_pointed_out() -> None:
    image = build_image(ZEN4, {"st0": 1})
    image.store.view[24:28] = (0x1FA0).to_bytes(4, "little")
    converted = convert(image, ZEN4_COMPACTED)
    (change,) = converted.changes
    assert (change.what, change.before, change.after) == ("mxcsr", 0x1FA0, 0x1F80)


def test_mxcsr_bits_that_the_target_lacks_are_a_loss() -> None:
    image = build_image(ZEN4, {"mxcsr": 0x21FA0})
    with pytest.raises(ConversionLoss, match="MXCSR_MASK lacks"):
        convert(image, SPR, mxcsr_mask=0xFFFF)
    converted = convert(image, SPR, mxcsr_mask=0xFFFF, drop=["mxcsr"])
    assert converted.losses[0].registers == (LostRegister("mxcsr", 0x21FA0, 0x1FA0),)
    assert converted.image.registers["mxcsr"] == 0x1FA0
    assert converted.image.registers["mxcsr_mask"] == 0xFFFF
    assert convert(image, SPR, mxcsr_mask=0x2FFFF).losses == ()


def test_mxcsr_is_lost_where_nothing_can_carry_it() -> None:
    image = build_image(ZEN4, {"mxcsr": 0x1FA0, "xmm1": 2})
    with pytest.raises(ConversionLoss):
        convert(image, FSAVE_LAYOUT, drop=["xmm1"])
    (loss,) = convert(image, FSAVE_LAYOUT, drop=["sse"]).losses
    assert loss.registers == (LostRegister("mxcsr", 0x1FA0, 0x1F80), LostRegister("xmm1", 2, 0))


def test_x87_pointers_are_state_only_while_an_exception_is_pending() -> None:
    pointers = {"fop": 0x123, "fip": 0x7FFF_1234_5678, "fdp": 0x1234}
    idle = build_image(ZEN4, pointers)
    converted = convert(idle, FSAVE_LAYOUT, narrow_pointers=True)
    assert converted.losses == ()
    reason = "no unmasked x87 exception is pending, so it is no state"
    assert converted.changes == (Change("fip", 0x7FFF_1234_5678, 0x1234_5678, reason),)
    pending = build_image(ZEN4, pointers | PENDING)
    with pytest.raises(ConversionLoss, match="32 bits"):
        convert(pending, FSAVE_LAYOUT, narrow_pointers=True)
    (loss,) = convert(pending, FSAVE_LAYOUT, narrow_pointers=True, drop=["fip"]).losses
    assert loss.registers == (LostRegister("fip", 0x7FFF_1234_5678, 0x1234_5678),)
    assert convert(pending, SPR).image == pending


def test_pointers_come_along_where_there_is_room() -> None:
    image = build_image(ZEN4, {"fop": 0x123, "fip": 0x7FFF_1234_5678})
    assert convert(image, SPR).image.canonical(exact=True) == image.canonical(exact=True)


def test_fxsave_takes_x87_and_sse() -> None:
    image = build_image(ZEN4, {"st3": 9, "xmm9": 8, "mxcsr": 0x1FBF})
    assert convert(image, FXSAVE_LAYOUT).image == image
    image.registers["ymm9h"] = 1
    with pytest.raises(ConversionLoss, match="AVX"):
        convert(image, FXSAVE_LAYOUT)


def test_a_component_of_another_size_keeps_what_fits() -> None:
    zen2 = Layout.standard(Cpu.catalog("zen2"), 0x207)
    image = build_image(zen2, {"pkru": 0x1234})
    assert (zen2.size_of(Component.PKRU), ZEN4.size_of(Component.PKRU)) == (64, 8)
    assert convert(image, ZEN4).image.registers["pkru"] == 0x1234
    assert convert(convert(image, ZEN4).image, zen2).image == image
    smaller = Layout.standard(build_cpu({18: Geometry(4096, 576, False, True, False)}), 0x40003)
    tiles = build_image(SPR, {"tmm3": 3, "tmm7": 7})
    (loss,) = convert(tiles, smaller, drop=["tmm7"]).losses
    assert loss.registers == (LostRegister("tmm7", 7, 0),)
    assert loss.reason == "the target has 4096 bytes for it"


def test_a_component_without_a_name_moves_as_a_whole() -> None:
    cpu = build_cpu({20: Geometry(40, 700, False, True, False), 2: Geometry(256, 800, False, False, False)})
    image = random_image(Layout.standard(cpu, cpu.xcr0), 1, present=0x100000)
    compacted = convert(image, Layout.compacted(cpu, cpu.xcr0))
    assert compacted.image == image
    with pytest.raises(ConversionLoss, match="component20"):
        convert(image, ZEN4)
    assert convert(image, ZEN4, drop=[20]).losses[0].registers[0].name == "component20"


def test_a_header_of_another_layout_is_refused() -> None:
    image = Image(build_image(ZEN4_COMPACTED).to_bytes(), ZEN4_COMPACTED)
    lying = Image(image.to_bytes()[: ZEN4.size].ljust(ZEN4.size, b"\0"), ZEN4)
    with pytest.raises(ImageError):
        convert(lying, SPR)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RegisterError):
        convert(build_image(ZEN4), SPR, drop=["pkrw"])
