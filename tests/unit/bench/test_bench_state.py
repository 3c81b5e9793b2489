"""The states that are measured: each class holds what its name and its mask say, on any processor."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu
from fpstate.arch.component import mask_of
from fpstate.image.tile import is_loaded

pytest.importorskip("fpstate._core", reason="the native core (fpstate._core) is not built")
from fpstate.bench.state import ALL_BUT_X87, AMX, EVERYTHING, X87, classes, everything, image_of

NAMES = ("haswell", "zen4", "skylake-x", "ice-lake-sp", "emerald-rapids", "apx-no-amx-model")
PKRU = mask_of(Component.PKRU)
PERMITTED, REFUSED = 0x602E7, 0x202E7
"""ARCH_GET_XCOMP_PERM on Emerald Rapids after and before it is asked for tiles."""


@pytest.mark.parametrize("permitted", [PERMITTED, REFUSED, None])
@pytest.mark.parametrize("name", NAMES)
def test_every_component_of_a_class_is_in_its_image(name: str, permitted: int | None) -> None:
    cpu = Cpu.catalog(name)
    for mask in classes(cpu.user_mask & ~PKRU, permitted).values():
        assert image_of(mask, cpu).in_use == mask


def test_tiles_are_in_a_class_where_they_are_permitted() -> None:
    cpu = Cpu.catalog("emerald-rapids")
    managed = cpu.user_mask & ~PKRU
    with_tiles, without = classes(managed, PERMITTED), classes(managed, REFUSED)
    assert (with_tiles[EVERYTHING], with_tiles[ALL_BUT_X87]) == (0x600E7, 0x600E6)
    assert (without[EVERYTHING], without[ALL_BUT_X87]) == (0xE7, 0xE6)
    assert {name: mask & ~AMX for name, mask in with_tiles.items()} == without
    image = image_of(with_tiles[EVERYTHING], cpu)
    start = image.layout.offset(Component.TILECFG)
    assert is_loaded(image.to_bytes()[start : start + 64])
    assert image.registers["tmm7"]


def test_a_class_with_a_component_that_no_image_fills_would_be_seen() -> None:
    cpu = Cpu.catalog("ice-lake-sp")
    assert image_of(cpu.user_mask, cpu).in_use == cpu.user_mask & ~PKRU


def test_the_classes_of_this_machine_are_what_its_core_saves(core) -> None:
    masks = classes()
    assert masks[EVERYTHING] == everything()
    assert masks[ALL_BUT_X87] == masks[EVERYTHING] & ~X87
    assert not masks[EVERYTHING] & ~core.features()["managed_mask"]
    assert all(image_of(mask).in_use == mask for mask in masks.values())
