import json
from dataclasses import replace

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, Place, mask_of
from fpstate.errors import LayoutError

SPR = Cpu.catalog("sapphire-rapids")
DMR = Cpu.catalog("diamond-rapids-model")
ZEN4 = Cpu.catalog("zen4")


def offsets(layout: Layout) -> dict[int, int]:
    return {place.component: place.offset for place in layout.places if place.component >= 2}


def size_by_last_bit(cpu: Cpu, mask: int) -> int:
    """The shortcut that many programs take: where the highest component ends."""
    highest = mask.bit_length() - 1
    return cpu.geometry[highest].offset + cpu.geometry[highest].size


def test_apx_lies_at_960_and_does_not_end_the_image() -> None:
    mask = mask_of(0, 1, 2, Component.PKRU, Component.APX)
    layout = Layout.standard(DMR, mask)
    assert layout.offset(Component.APX) == 960
    assert layout.size == 2696
    assert size_by_last_bit(DMR, mask) == 1088


def test_places_are_in_offset_order_with_apx_before_opmask() -> None:
    order = [place.component for place in Layout.standard(DMR).places]
    assert order == [0, 1, 2, 19, 5, 6, 7, 9, 17, 18]


def test_compacted_places_are_in_component_order() -> None:
    assert offsets(Layout.compacted(DMR)) == {
        **{2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432},
        **{17: 2496, 18: 2560, 19: 10752},
    }
    assert Layout.compacted(DMR).size == 10880
    assert Layout.compacted(DMR, DMR.user_mask & ~mask_of(18)).offset(Component.APX) == 2560


def test_amd_has_no_mpx_hole() -> None:
    assert offsets(Layout.standard(ZEN4)) == {2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432}
    assert Layout.standard(ZEN4).size == 2440
    assert Layout.standard(Cpu.catalog("ice-lake-sp")).offset(Component.OPMASK) == 1088


def test_zen3_keeps_the_avx512_hole_that_it_does_not_use() -> None:
    assert offsets(Layout.standard(Cpu.catalog("zen3"))) == {2: 576, 9: 2432}


def test_zen2_phantom_makes_the_raw_size_896() -> None:
    cpu = Cpu.catalog("zen2")
    assert Layout.standard(cpu, cpu.xcr0).size == Layout.compacted(cpu, cpu.xcr0).size == 896
    assert Layout.standard(cpu).size == 832


@pytest.mark.parametrize(
    ("mask", "places", "size"),
    [
        (
            0x61EE7,
            {2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432, 10: 2440, 11: 2448, 12: 2464, 17: 2496, 18: 2560},
            10752,
        ),
        (
            0x602E7 | 0xDD00,
            {
                **{2: 576, 5: 832, 6: 896, 7: 1408, 8: 2432, 9: 2560, 10: 2568, 11: 2576, 12: 2592},
                **{14: 2616, 15: 2664, 17: 3520, 18: 3584},
            },
            11776,
        ),
        (0x20EE7, {2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432, 10: 2440, 11: 2448, 17: 2496}, 2560),
    ],
)
def test_sapphire_rapids_compacted(mask: int, places: dict[int, int], size: int) -> None:
    layout = Layout.compacted(SPR, mask)
    assert (offsets(layout), layout.size) == (places, size)


def test_the_align_flag_is_honoured() -> None:
    flat = {number: replace(geometry, aligned=False) for number, geometry in SPR.geometry.items()}
    unaligned = Layout.compacted(replace(SPR, geometry=flat), 0x61EE7)
    assert unaligned.offset(Component.TILECFG) == 2488
    assert Layout.compacted(SPR, 0x61EE7).offset(Component.TILECFG) == 2496


def test_sapphire_rapids_standard() -> None:
    layout = Layout.standard(SPR)
    assert offsets(layout) == {2: 576, 5: 1088, 6: 1152, 7: 1664, 9: 2688, 17: 2752, 18: 2816}
    assert layout.size == 11008


def test_skylake_sp_keeps_mpx() -> None:
    layout = Layout.compacted(Cpu.catalog("skylake-sp"))
    assert offsets(layout) == {2: 576, 3: 832, 4: 896, 5: 960, 6: 1024, 7: 1536, 9: 2560}
    assert layout.size == 2568


def test_a_compacted_image_has_no_gaps_for_what_it_lacks() -> None:
    layout = Layout.compacted(ZEN4, mask_of(Component.OPMASK, Component.HI16_ZMM))
    assert offsets(layout) == {5: 576, 7: 640}
    assert layout.xcomp_bv == 1 << 63 | 0xA0


@pytest.mark.parametrize(
    ("name", "enabled", "standard", "user", "supervisor", "compacted"),
    [
        ("zen4", 0xE7, 2432, 0xE7, 0x800, 2448),
        ("zen5", 0xE7, 2432, 0xE7, 0x800, 2448),
        ("zen3", 0x7, 832, 0x7, 0, 832),
        ("zen2", 0x7, 832, 0x7, 0, 832),
        ("skylake-x", 0xFF, 2688, 0xFF, 0x100, 2688),
        ("ice-lake-sp", 0xE7, 2688, 0xE7, 0x100, 2560),
        ("tiger-lake", 0xE7, 2688, 0xE7, 0x900, 2576),
        ("sapphire-rapids", 0x602E7, 11008, 0x602E7, 0x100, 10880),
        ("granite-rapids", 0x602E7, 11008, 0x602E7, 0x100, 10880),
        ("alder-lake", 0x7, 832, 0x7, 0x900, 976),
        ("lunar-lake", 0x7, 832, 0x7, 0x900, 976),
    ],
)
def test_sizes_that_operating_systems_saw(
    name: str, enabled: int, standard: int, user: int, supervisor: int, compacted: int
) -> None:
    cpu = Cpu.catalog(name)
    assert Layout.standard(cpu, enabled).size == standard
    assert Layout.compacted(cpu, user | supervisor).size == compacted


@pytest.mark.parametrize(
    ("name", "standard", "compacted"),
    [
        *(("zen1", 832, 832), ("haswell", 832, 832), ("bulldozer", 960, 960), ("zen3", 2440, 840)),
        *(("zen4", 2440, 2440), ("zen5", 2440, 2440), ("skylake-client", 1088, 960)),
        *(("skylake-x", 2688, 2560), ("skylake-sp", 2696, 2568), ("knights-landing", 2688, 2432)),
        *(("ice-lake-sp", 2696, 2440), ("tiger-lake", 2696, 2440), ("alder-lake", 2696, 840)),
        *(("sapphire-rapids", 11008, 10752), ("granite-rapids", 11008, 10752)),
        *(("diamond-rapids-model", 11008, 10880), ("apx-no-amx-model", 2696, 2568)),
    ],
)
def test_sizes_of_all_user_components(name: str, standard: int, compacted: int) -> None:
    cpu = Cpu.catalog(name)
    assert Layout.standard(cpu).size == cpu.standard_size == standard
    assert Layout.compacted(cpu).size == compacted


@pytest.mark.parametrize("mask", [0, 1, 2, 3])
@pytest.mark.parametrize("make", [Layout.standard, Layout.compacted])
def test_no_image_is_shorter_than_576_bytes(make, mask: int) -> None:
    layout = make(ZEN4, mask)
    assert layout.size == 576
    assert [(p.component, p.offset, p.size) for p in layout.places] == [
        place for place in ((0, 0, 160), (1, 160, 256)) if mask >> place[0] & 1
    ]


def test_the_standard_format_refuses_supervisor_components() -> None:
    with pytest.raises(LayoutError, match="CET_S"):
        Layout.standard(ZEN4, 0x1003)
    assert Component.CET_S in Layout.compacted(ZEN4, 0x1003)


def test_a_component_that_cpuid_lacks_is_refused() -> None:
    with pytest.raises(LayoutError, match="TILEDATA"):
        Layout.standard(ZEN4, mask_of(0, 1, 18))


@pytest.mark.parametrize("mask", [-1, 1 << 63, 1 << 64])
def test_what_is_no_set_of_components_is_refused(mask: int) -> None:
    with pytest.raises(LayoutError, match="no set of components"):
        Layout.compacted(ZEN4, mask)


def test_a_component_without_a_place_is_refused_by_name() -> None:
    layout = Layout.standard(ZEN4, 7)
    assert Component.AVX in layout
    assert Component.PKRU not in layout
    assert layout.size_of(Component.AVX) == 256
    with pytest.raises(LayoutError, match="PKRU has no place in this standard layout"):
        layout.offset(Component.PKRU)


def test_the_standard_format_has_no_xcomp_bv() -> None:
    assert Layout.standard(ZEN4).xcomp_bv == 0
    assert Layout.compacted(ZEN4).xcomp_bv == 1 << 63 | 0x2E7


def test_a_layout_can_be_learnt_from_a_producer() -> None:
    places = [Place(9, 2432, 8), Place(2, 576, 256), Place(0, 0, 160), Place(1, 160, 256)]
    layout = Layout.from_places(Format.STANDARD, places)
    assert layout == Layout.standard(Cpu.catalog("zen3"))
    assert Layout.from_places(Format.STANDARD, places, size=2560).size == 2560


@pytest.mark.parametrize(
    ("places", "size", "why"),
    [
        ([Place(2, 576, 256), Place(5, 800, 64)], None, "OPMASK at 800 overlaps"),
        ([Place(2, 576, 256), Place(2, 832, 256)], None, "AVX occurs twice"),
        ([Place(63, 576, 64)], None, "no component"),
        ([Place(2, 512, 256)], None, "AVX cannot lie at 512"),
        ([Place(2, 576, 0)], None, "AVX cannot lie"),
        ([Place(1, 176, 256)], None, "SSE must have 256 bytes at 160"),
        ([Place(2, 576, 256)], 800, "end at byte 832"),
    ],
)
def test_impossible_places_are_refused(places: list[Place], size: int | None, why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        Layout.from_places(Format.STANDARD, places, size=size)


def test_a_layout_survives_json() -> None:
    for layout in (Layout.standard(DMR), Layout.compacted(SPR, 0x61EE7)):
        assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize(
    "change",
    [
        *({"mask": "0x3"}, {"format": "odd"}, {"places": 3}, {"places": [{}]}, {"size": 10}, {"mask": None}),
        *({"size": float("inf")}, {"size": float("nan")}),
    ],
)
def test_a_damaged_description_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(LayoutError):
        Layout.from_dict(Layout.standard(ZEN4).to_dict() | change)
