import pytest

from fpstate.arch.component import (
    COMPACTED_BIT,
    COMPONENTS,
    GUEST_SUPERVISOR,
    INDEPENDENT,
    LEGACY_PLACES,
    SUPERVISOR_SUPPORTED,
    USER_DYNAMIC,
    USER_SUPPORTED,
    Component,
    components_in,
    mask_names,
    mask_of,
    mask_text,
    xcr0_complete,
    xcr0_problem,
)

EVERYTHING = 0xE02E7 | 0x18


def test_every_component_is_described() -> None:
    assert set(COMPONENTS) == set(Component)
    assert all(number == info.component for number, info in COMPONENTS.items())


@pytest.mark.parametrize("info", COMPONENTS.values(), ids=lambda info: info.component.name)
def test_fields_fit_their_component_and_do_not_overlap(info) -> None:
    end = 0
    for field in info.fields:
        assert field.offset >= end, field
        end = field.offset + field.size
    assert 0 < end <= info.size


def test_field_names_are_unique() -> None:
    names = [field.name for info in COMPONENTS.values() for field in info.fields]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("component", "name", "offset", "size"),
    [
        (Component.X87, "st7", 32 + 16 * 7, 10),
        (Component.SSE, "xmm15", 240, 16),
        (Component.AVX, "ymm3h", 48, 16),
        (Component.BNDREGS, "bnd3", 48, 16),
        (Component.OPMASK, "k5", 40, 8),
        (Component.ZMM_HI256, "zmm7h", 224, 32),
        (Component.HI16_ZMM, "zmm20", 256, 64),
        (Component.PKRU, "pkru", 0, 4),
        (Component.CET_S, "pl2_ssp", 16, 8),
        (Component.UINTR, "uintr_uinv", 20, 1),
        (Component.LBR, "lbr_31_info", 800, 8),
        (Component.TILECFG, "tile7_rows", 55, 1),
        (Component.TILEDATA, "tmm2", 2048, 1024),
        (Component.APX, "r31", 120, 8),
    ],
)
def test_registers_lie_where_the_manual_says(component: Component, name: str, offset: int, size: int) -> None:
    (field,) = (field for field in COMPONENTS[component].fields if field.name == name)
    assert (field.offset, field.size) == (offset, size)


def test_x87_and_sse_fill_the_legacy_places() -> None:
    assert LEGACY_PLACES == {0: (0, 160), 1: (160, 256)}
    assert all(LEGACY_PLACES[number][1] == COMPONENTS[number].size for number in LEGACY_PLACES)


def test_the_masks_are_those_of_linux() -> None:
    assert USER_SUPPORTED == 0xE02FF
    assert USER_DYNAMIC == 1 << 18
    assert SUPERVISOR_SUPPORTED == 0x1C00
    assert GUEST_SUPERVISOR == 0x1000
    assert INDEPENDENT == 0x8000
    assert not USER_SUPPORTED & SUPERVISOR_SUPPORTED


def test_masks_agree_with_the_table() -> None:
    assert mask_of(*(n for n, info in COMPONENTS.items() if info.guest_only)) == GUEST_SUPERVISOR
    assert mask_of(*(n for n, info in COMPONENTS.items() if info.dynamic)) == USER_DYNAMIC
    supervisor = mask_of(*(n for n, info in COMPONENTS.items() if info.supervisor))
    assert supervisor & USER_SUPPORTED == 0
    assert supervisor | SUPERVISOR_SUPPORTED | INDEPENDENT == supervisor


def test_a_mask_is_taken_apart_in_ascending_order() -> None:
    assert list(components_in(mask_of(19, 2, 0, 62))) == [0, 2, 19, 62]
    assert list(components_in(COMPACTED_BIT | 3)) == [0, 1]
    assert mask_names(0x100205) == ("X87", "AVX", "PKRU", "component20")
    assert mask_text(7) == "X87|SSE|AVX"
    assert mask_text(0) == "none"


@pytest.mark.parametrize("mask", [0x1, 0x3, 0x7, 0x1F, 0x1B, 0xE7, 0x2E7, 0x602E7, 0xE02E7, 0x60003])
def test_legal_xcr0(mask: int) -> None:
    assert xcr0_problem(mask, EVERYTHING) is None


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (0x2, "bit 0"),
        (0x0, "bit 0"),
        (0x5, "AVX needs SSE"),
        (0xB, "BNDREGS and BNDCSR"),
        (0x13, "BNDREGS and BNDCSR"),
        (0x27, "AVX-512 needs"),
        (0xE3, "AVX-512 needs"),
        (0x20003, "TILECFG and TILEDATA"),
        (0x40003, "TILECFG and TILEDATA"),
        (0x8001F, "APX"),
        (0x803, "not supported"),
        (1 << 63 | 3, "not supported"),
    ],
)
def test_illegal_xcr0(mask: int, why: str) -> None:
    assert why in (xcr0_problem(mask, EVERYTHING) or "")


@pytest.mark.parametrize(
    ("mask", "complete"),
    [
        (0x602E7, 0x602E7),
        (0x202E7, 0x2E7),
        (0x402E7, 0x2E7),
        (0xE0 | 0x3, 0x3),
        (0x67, 0x7),
        (0xF, 0x7),
        (0x4, 0x1),
        (0, 0x1),
    ],
)
def test_incomplete_groups_are_left_out_of_xcr0(mask: int, complete: int) -> None:
    assert xcr0_complete(mask) == complete
    assert xcr0_problem(complete, 0x602FF) is None


def test_each_of_them_is_refused_as_it_is() -> None:
    assert all(xcr0_problem(mask, 0x602FF) for mask in (0x202E7, 0x402E7, 0xE3, 0x67, 0xF, 0x4, 0))
