"""IA32_XFD: #NM and IA32_XFD_ERR, and what saves and restores do with a component that is held back."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import COMPACTED_BIT
from fpstate.engine.model import IA32_XFD, IA32_XFD_ERR, Behaviour, Processor
from fpstate.errors import ProcessorFault

TILES = mask_of(Component.TILEDATA)
CONFIG = mask_of(Component.TILECFG)
ROOM = 12288
TILE_AT = 2816


@pytest.fixture
def processor() -> Processor:
    """Sapphire Rapids with all of XCR0, nothing held back, and a tile in use."""
    processor = Processor(Cpu.catalog("sapphire-rapids"))
    processor.xsetbv(0, processor.cpu.xcr0)
    processor.write("tmm3", 0x1234)
    return processor


def fault_of(action, *arguments) -> ProcessorFault:
    with pytest.raises(ProcessorFault) as caught:
        action(*arguments)
    return caught.value


def test_the_first_use_raises_nm_and_says_of_what(processor):
    processor.wrmsr(IA32_XFD, TILES)
    fault = fault_of(processor.write, "tmm0", 1)
    assert (fault.vector, fault.mnemonic) == (7, "#NM")
    assert processor.rdmsr(IA32_XFD_ERR) == TILES
    assert processor.read("tmm0") == 0


def test_nm_for_task_switched_leaves_xfd_err_alone(processor):
    processor.task_switched = True
    assert fault_of(processor.write, "xmm0", 1).vector == 7
    assert fault_of(processor.xsave, bytearray(ROOM)).vector == 7
    assert processor.rdmsr(IA32_XFD_ERR) == 0


def test_tile_instructions_do_not_look_at_task_switched(processor):
    processor.task_switched = True
    processor.write("tmm0", 1)
    assert processor.read("tmm0") == 1


def test_the_configuration_is_not_held_back(processor):
    processor.wrmsr(IA32_XFD, TILES)
    processor.tilerelease()
    assert processor.read("tmm3") == 0
    assert fault_of(processor.wrmsr, IA32_XFD, CONFIG).vector == 13


def test_contents_persist_while_they_are_held_back(processor):
    processor.wrmsr(IA32_XFD, TILES)
    assert not processor.xgetbv(1) & TILES
    processor.wrmsr(IA32_XFD, 0)
    assert processor.read("tmm3") == 0x1234
    assert processor.xgetbv(1) & TILES


def test_saves_never_fault_and_take_it_for_initial(processor):
    processor.wrmsr(IA32_XFD, TILES)
    for save in (processor.xsave, processor.xsaveopt, processor.xsavec, processor.xsaves):
        area = bytearray(ROOM)
        save(area)
        assert not int.from_bytes(area[512:520], "little") & TILES
    area = bytearray(b"\xcc" * ROOM)
    processor.xsavec(area)
    start = Layout.compacted(processor.cpu, processor.xcr0).offset(Component.TILEDATA)
    assert area[start : start + 8192] == b"\xcc" * 8192


@pytest.mark.parametrize("writes", [True, False])
def test_xsave_may_write_initial_values_and_never_the_contents(processor, writes):
    processor.behaviour = Behaviour(writes_disabled=writes)
    processor.wrmsr(IA32_XFD, TILES)
    area = bytearray(b"\xcc" * ROOM)
    processor.xsave(area)
    assert area[TILE_AT : TILE_AT + 8192] == (b"\0" if writes else b"\xcc") * 8192


@pytest.mark.parametrize("shows", [True, False])
def test_what_xgetbv_shows_of_it_is_a_parameter(processor, shows):
    processor.behaviour = Behaviour(shows_disabled=shows)
    processor.wrmsr(IA32_XFD, TILES)
    assert bool(processor.xgetbv(1) & TILES) is shows


@pytest.mark.parametrize("compacted", [True, False])
def test_a_restore_faults_where_it_would_load_and_initialises_where_it_would_not(processor, compacted):
    processor.wrmsr(IA32_XFD, TILES)
    area = bytearray(ROOM)
    area[512:520] = TILES.to_bytes(8, "little")
    if compacted:
        area[520:528] = (COMPACTED_BIT | TILES).to_bytes(8, "little")
    area[24:28] = (0x1F80).to_bytes(4, "little")
    assert fault_of(processor.xrstor, area).rule == "XS018"
    assert processor.rdmsr(IA32_XFD_ERR) == TILES
    processor.xrstor(area, ~TILES)
    assert processor.file.values[Component.TILEDATA][3072:3074] == b"\x34\x12"
    area[512:520] = bytes(8)
    processor.xrstor(area)
    processor.wrmsr(IA32_XFD, 0)
    assert processor.read("tmm3") == 0


def test_without_xfd_there_is_no_such_register():
    processor = Processor(Cpu.catalog("zen5"))
    assert fault_of(processor.rdmsr, IA32_XFD).vector == 13
    assert fault_of(processor.wrmsr, IA32_XFD_ERR, 0).vector == 13


def test_a_tile_configuration_is_checked_and_zeroes_the_tiles(processor):
    good = bytearray(64)
    good[0], good[16], good[48] = 1, 64, 16
    processor.ldtilecfg(bytes(good))
    assert processor.read("tmm3") == 0
    assert processor.read("tile0_rows") == 16
    assert processor.xgetbv(1) & (CONFIG | TILES) == CONFIG
    for at, value in ((0, 2), (5, 1), (16, 65), (48, 17), (48, 0), (63, 1)):
        bad = bytearray(good)
        bad[at] = value
        assert fault_of(processor.ldtilecfg, bytes(bad)).vector == 13
    processor.ldtilecfg(bytes(64))
    assert not processor.xgetbv(1) & CONFIG
