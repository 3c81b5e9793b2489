"""Conversion between any two layouts keeps every register, or says which it does not keep."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpstate.arch import Component, Cpu, Format, Geometry, Layout
from fpstate.arch.component import components_in
from fpstate.errors import ConversionLoss
from fpstate.image import Image, differences
from fpstate.image.convert import Converted, convert
from fpstate.image.legacy import (
    FSAVE_LAYOUT,
    FXSAVE_LAYOUT,
    from_fsave,
    from_fxsave,
    fsave_selectors,
    to_fsave,
    to_fxsave,
)
from fpstate.image.move import register_moves
from fpstate.testing import build_cpu, build_image, build_layout, images, invented_cpus, layouts, random_image

SYNTHETIC = (
    "sapphire-rapids",
    "apx-no-amx-model",
    "diamond-rapids-model",
    "skylake-sp",
    "zen2",
    "tiger-lake",
)
"""AMX, APX, both, MPX with PKRU, a PKRU of 64 bytes, CET."""
SEEDS = range(6)
EVERYTHING = tuple(range(63))
Converter = Callable[[Image, Layout], Converted]


def recorded_cpus() -> dict[str, Cpu]:
    """One processor for each distinct layout of user components in the recorded CPUID leaves."""
    folder = os.environ.get("FPSTATE_CORPUS")
    if not folder:
        return {}
    found = json.loads((Path(folder) / "cpuid_leaf_d.json").read_text())["user_layouts"]
    return {
        name: build_cpu(
            {
                int(number): Geometry(c["size"], c["offset"], False, c["align64"], c["xfd"])
                for number, c in entry["components"].items()
            },
            name=name,
        )
        for name, entry in found.items()
    }


RECORDED = recorded_cpus()
RECORDED_NAMES = sorted(RECORDED) or [
    pytest.param(
        "", marks=pytest.mark.skip("FPSTATE_CORPUS is not set: no recorded layouts to convert between")
    )
]


def exact(image: Image) -> object:
    return image.canonical(exact=True)


def assert_there_and_back(convert: Converter, image: Image, layout: Layout) -> None:
    """What a conversion without loss must do to an image, and undo."""
    there = convert(image, layout)
    assert there.losses == ()
    assert exact(there.image) == exact(image)
    assert there.image.xcomp_bv == layout.xcomp_bv
    assert there.image.reserved == bytes(48)
    assert there.image.xstate_bv & ~image.xstate_bv & ~(1 << Component.SSE) == 0
    back = convert(there.image, image.layout)
    assert back.losses == ()
    assert exact(back.image) == exact(image)
    again = convert(back.image, layout)
    assert again.image.to_bytes() == there.image.to_bytes()


def assert_nothing_is_left_over(convert: Converter, layout: Layout, target: Layout, seed: int) -> None:
    """The same registers give the same bytes, whatever lies around them."""
    clean, dirty = (random_image(layout, seed, leftovers=bytes_) for bytes_ in (b"", b"\xa5"))
    for name in clean.registers.names():
        if name != "mxcsr_mask":
            assert dirty.registers[name] == clean.registers[name]
    dirty.store.view[28:32] = clean.store.view[28:32]
    assert convert(dirty, target).image.to_bytes() == convert(clean, target).image.to_bytes()


def pair_of(cpu: Cpu) -> tuple[Layout, Layout]:
    return Layout.standard(cpu, cpu.xcr0), Layout.compacted(cpu, cpu.xcr0)


@pytest.mark.parametrize("name", RECORDED_NAMES)
def test_every_recorded_layout_converts_and_comes_back(name: str) -> None:
    standard, compacted = pair_of(RECORDED[name])
    for seed in SEEDS:
        assert_there_and_back(convert, random_image(standard, seed), compacted)
        assert_there_and_back(convert, random_image(compacted, seed), standard)
        assert_nothing_is_left_over(convert, standard, compacted, seed)
        assert_nothing_is_left_over(convert, compacted, standard, seed)


def test_the_recorded_layouts_are_all_there() -> None:
    if not RECORDED:
        pytest.skip("FPSTATE_CORPUS is not set: no recorded layouts to convert between")
    assert len(RECORDED) == 17


@pytest.mark.parametrize("name", RECORDED_NAMES)
def test_every_recorded_layout_converts_to_every_other_or_states_the_loss(name: str) -> None:
    for other in RECORDED.values():
        image = random_image(Layout.standard(RECORDED[name], RECORDED[name].xcr0), 5)
        target = Layout.compacted(other, other.xcr0)
        converted = convert(image, target, drop=EVERYTHING)
        lost = {register.name: register for loss in converted.losses for register in loss.registers}
        for each in differences(image, converted.image):
            assert each.register in lost or each.register.startswith(("ymm", "zmm"))
        if not lost:
            assert converted.image == image
        else:
            with pytest.raises(ConversionLoss):
                convert(image, target)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_layouts_convert_and_come_back(name: str) -> None:
    standard, compacted = pair_of(Cpu.catalog(name))
    for seed in SEEDS:
        assert_there_and_back(convert, random_image(standard, seed), compacted)
        assert_there_and_back(convert, random_image(compacted, seed), standard)
        assert_nothing_is_left_over(convert, compacted, standard, seed)


@given(st.data(), layouts())
def test_what_is_lost_and_what_is_kept_make_up_the_whole(data: st.DataObject, target: Layout) -> None:
    image = data.draw(images())
    converted = convert(image, target, drop=EVERYTHING)
    restored = build_image(image.layout)
    moved = convert(converted.image, image.layout, drop=EVERYTHING)
    restored.store.view[:] = moved.image.store.view
    for loss in converted.losses:
        for register in loss.registers:
            assert register.value != register.becomes
            assert converted.image.registers.canonical(register.name) == register.becomes
            write(restored, register.name, register.value)
    assert restored == image
    assert (converted.losses == ()) == (converted.image == image)


def write(image: Image, name: str, value: int) -> None:
    """Set a register of the table's, without what writing st0 does to the tags."""
    tags = image.registers.canonical("ftag_abridged")
    image.registers[name] = value
    if name.startswith("st"):
        image.registers["ftag_abridged"] = tags


@given(st.data())
def test_without_loss_a_conversion_can_be_undone(data: st.DataObject) -> None:
    image, layout = data.draw(images()), data.draw(layouts())
    try:
        converted = convert(image, layout)
    except ConversionLoss:
        return
    back = convert(converted.image, image.layout)
    assert back.losses == ()
    assert back.image == converted.image == image


@given(st.data(), invented_cpus())
def test_components_nobody_has_named_convert_too(data: st.DataObject, cpu: Cpu) -> None:
    image = data.draw(images(layouts(cpu, whole=True)))
    target = build_layout(cpu, Format.COMPACTED, cpu.xcr0 | cpu.xss)
    assert_there_and_back(convert, image, target)


@given(images())
def test_the_image_that_is_converted_is_not_touched(image: Image) -> None:
    before = image.to_bytes()
    convert(image, FXSAVE_LAYOUT, drop=EVERYTHING)
    assert image.to_bytes() == before


@given(images(FXSAVE_LAYOUT))
def test_fxsave_images_are_read_as_they_are_written(image: Image) -> None:
    data = to_fxsave(image)
    assert exact(from_fxsave(data)) == exact(image)
    assert to_fxsave(from_fxsave(data)) == data


@given(images(FSAVE_LAYOUT), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_fsave_images_are_read_as_they_are_written(image: Image, cs: int, ds: int) -> None:
    data = to_fsave(image, cs=cs, ds=ds)
    narrowed = convert(image, FSAVE_LAYOUT, narrow_pointers=True, drop=("fip", "fdp")).image
    assert exact(from_fsave(data)) == exact(narrowed)
    assert fsave_selectors(data) == (cs, ds)
    assert to_fsave(from_fsave(data), cs=cs, ds=ds) == data


@given(st.binary(min_size=108, max_size=108))
def test_any_fsave_image_keeps_its_registers(data: bytes) -> None:
    image = from_fsave(data)
    assert exact(from_fsave(to_fsave(image))) == exact(image)


# Negative controls: converters with the mistakes that the laws are there to catch.


def forgetful(image: Image, layout: Layout) -> Converted:
    """Forget the component with the highest number of those that are not initial."""
    good = convert(image, layout)
    last = list(components_in(image.in_use | 1 << Component.SSE))[-1]
    view = good.image.store.view
    view[512:520] = (good.image.xstate_bv & ~(1 << last)).to_bytes(8, "little")
    return good


def stale(image: Image, layout: Layout) -> Converted:
    """Copy components by the layout's mask, and set XSTATE_BV to all of it: leftovers become state."""
    good = convert(image, layout)
    shared = image.layout.mask & layout.mask
    for at, to, size in register_moves(image.layout, layout, shared):
        good.image.store.view[to : to + size] = image.store.view[at : at + size]
    good.image.store.view[512:520] = shared.to_bytes(8, "little")
    return good


def wholesale(image: Image, layout: Layout) -> Converted:
    """Copy leftovers too, but leave XSTATE_BV right: equal registers, with other people's bytes between them."""
    good = convert(image, layout)
    for at, to, size in register_moves(image.layout, layout, image.layout.mask & layout.mask):
        good.image.store.view[to : to + size] = image.store.view[at : at + size]
    return good


def unaligned(image: Image, layout: Layout) -> Converted:
    """Use the offsets of the standard format in the compacted one."""
    good = convert(image, layout)
    for place in image.layout.places:
        if place.end <= layout.size and place.component > 1:
            good.image.store.view[place.offset : place.end] = image.store.view[place.offset : place.end]
    return good


def without_the_sse_bit(image: Image, layout: Layout) -> Converted:
    """Keep XSTATE_BV as it is, so that a compacted image loses an MXCSR that AVX had carried."""
    good = convert(image, layout)
    good.image.store.view[512:520] = image.xstate_bv.to_bytes(8, "little")
    return good


CPU = Cpu.catalog("diamond-rapids-model")


@pytest.mark.parametrize("broken", [forgetful, stale, unaligned])
def test_a_broken_converter_is_caught_on_its_way_there_and_back(broken: Converter) -> None:
    standard, compacted = pair_of(CPU)
    caught = 0
    for seed in SEEDS:
        try:
            assert_there_and_back(broken, random_image(standard, seed, leftovers=b"\xa5"), compacted)
        except (AssertionError, ConversionLoss):
            caught += 1
    assert caught >= len(SEEDS) - 1


@pytest.mark.parametrize("broken", [stale, wholesale])
def test_a_converter_that_copies_leftovers_is_caught(broken: Converter) -> None:
    standard, compacted = pair_of(CPU)
    for seed in SEEDS:
        with pytest.raises(AssertionError):
            assert_nothing_is_left_over(broken, standard, compacted, seed)


def test_a_converter_that_keeps_xstate_bv_is_caught_by_an_mxcsr_that_avx_carries() -> None:
    standard, compacted = pair_of(CPU)
    image = build_image(standard, {"ymm3h": 1})
    image.store.view[24:28] = (0x1FA0).to_bytes(4, "little")
    assert_there_and_back(convert, image, compacted)
    with pytest.raises(AssertionError):
        assert_there_and_back(without_the_sse_bit, image, compacted)
