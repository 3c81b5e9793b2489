"""Tiles in the model: which instructions fault and for what, and which bytes they change."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.engine.model import Processor
from fpstate.errors import ProcessorFault

TILECFG, TILEDATA = Component.TILECFG, Component.TILEDATA
MEMORY = bytes(range(1, 251)) * 5


def configuration(*, rows: int = 4, width: int = 8, start_row: int = 0) -> bytes:
    """Tile 0 of this shape, and no other."""
    data = bytearray(64)
    data[0], data[1], data[16], data[48] = 1, start_row, width, rows
    return bytes(data)


@pytest.fixture
def processor() -> Processor:
    processor = Processor.under_linux(Cpu.catalog("emerald-rapids"))
    processor.xfd = 0
    return processor


def vector_of(perform, *arguments) -> int:
    with pytest.raises(ProcessorFault) as caught:
        perform(*arguments)
    return caught.value.vector


def tile(processor: Processor, number: int = 0) -> bytes:
    return processor.file.values[TILEDATA][1024 * number :][:1024]


def fill(processor: Processor) -> None:
    processor.file.put(TILEDATA, b"\xcc" * 8192)


def test_a_tile_that_is_not_configured_is_undefined_before_xfd_is_asked(processor):
    processor.xfd = mask_of(TILEDATA)
    assert vector_of(processor.tilezero, 0) == 6
    processor.ldtilecfg(configuration())
    assert vector_of(processor.tilezero, 1) == 6
    assert vector_of(processor.tilezero, 0) == 7
    assert processor.xfd_err == mask_of(TILEDATA)


def test_widths_come_before_xfd_and_start_row_after(processor):
    processor.xfd = mask_of(TILEDATA)
    processor.ldtilecfg(configuration(width=3, start_row=9))
    assert vector_of(processor.tileloadd, 0, MEMORY) == 6
    processor.ldtilecfg(configuration(start_row=9))
    assert vector_of(processor.tileloadd, 0, MEMORY) == 7
    processor.xfd = 0
    assert vector_of(processor.tileloadd, 0, MEMORY) == 6
    assert vector_of(processor.tilestored, 0, bytearray(1024)) == 6
    processor.tilezero(0)


def test_a_load_zeroes_what_is_outside_the_shape(processor):
    processor.ldtilecfg(configuration(rows=2, width=4))
    fill(processor)
    processor.tileloadd(0, MEMORY, stride=16)
    rows = [tile(processor)[64 * row :][:64] for row in range(16)]
    assert rows[0] == MEMORY[:4].ljust(64, b"\0")
    assert rows[1] == MEMORY[16:20].ljust(64, b"\0")
    assert not any(map(any, rows[2:]))
    assert tile(processor, 1) == b"\xcc" * 1024


def test_start_row_is_where_a_load_goes_on_and_is_zero_afterwards(processor):
    processor.ldtilecfg(configuration(start_row=2))
    fill(processor)
    processor.tileloadd(0, MEMORY)
    assert tile(processor)[:128] == b"\xcc" * 128
    assert tile(processor)[128:136] == MEMORY[128:136]
    assert processor.read("start_row") == 0


def test_start_row_is_where_a_store_goes_on(processor):
    processor.ldtilecfg(configuration(start_row=3))
    fill(processor)
    area = bytearray(1024)
    processor.tilestored(0, area, stride=32)
    assert area == bytes(96) + b"\xcc" * 8 + bytes(920)
    assert processor.read("start_row") == 0


def test_tilezero_zeroes_all_of_a_tile_and_puts_tiles_in_use(processor):
    processor.ldtilecfg(configuration(rows=1, width=3, start_row=200))
    assert not processor.xgetbv(1) & mask_of(TILEDATA)
    fill(processor)
    processor.tilezero(0)
    assert not any(tile(processor))
    assert processor.xgetbv(1) & mask_of(TILECFG, TILEDATA) == mask_of(TILECFG, TILEDATA)
    processor.ldtilecfg(configuration())
    assert processor.xgetbv(1) & mask_of(TILECFG, TILEDATA) == mask_of(TILECFG)


def test_what_is_stored_is_what_was_loaded(processor):
    area = bytearray(b"\xee" * 64)
    processor.sttilecfg(area)
    assert area == bytes(64)
    processor.ldtilecfg(configuration())
    processor.sttilecfg(area)
    assert area == configuration()


@pytest.mark.parametrize("illegal", [b"\2" + bytes(63), b"\0" * 63 + b"\1", configuration(rows=17)])
def test_a_restore_makes_an_illegal_configuration_initial_and_loads_the_tiles(processor, illegal):
    processor.ldtilecfg(configuration())
    area = bytearray(11008)
    area[24:28] = (0x1F80).to_bytes(4, "little")
    area[512:520] = mask_of(TILECFG, TILEDATA).to_bytes(8, "little")
    area[2752:2816] = illegal
    area[2816:] = b"\7" * 8192
    processor.xrstor(area)
    assert processor.file.values[TILECFG] == bytes(64)
    assert processor.file.values[TILEDATA] == b"\7" * 8192
    assert processor.xgetbv(1) == mask_of(TILEDATA)


def test_a_register_is_not_given_what_ldtilecfg_refuses(processor):
    assert vector_of(processor.write, "tilecfg", 2) == 13
    assert vector_of(processor.write, "tile0_rows", 17) == 13


def test_keys_need_protection_keys(processor):
    processor.wrpkru(0x30)
    assert processor.rdpkru() == 0x30
    without = Processor.under_linux(Cpu.catalog("haswell"))
    assert vector_of(without.rdpkru) == vector_of(without.wrpkru, 0) == 6


def test_memory_that_ends_too_early_is_a_page_fault_and_changes_nothing(processor):
    """Up to the last byte of the last row: what lies between the rows need not be there."""
    short = bytearray(b"\xee" * 63)
    assert vector_of(processor.ldtilecfg, bytes(63)) == 14
    assert vector_of(processor.ldtilecfg, b"") == 14
    assert vector_of(processor.sttilecfg, short) == 14
    processor.ldtilecfg(configuration(rows=4, width=8, start_row=1))
    fill(processor)
    assert vector_of(processor.tileloadd, 0, bytes(3 * 64 + 7)) == 14
    assert vector_of(processor.tilestored, 0, short) == 14
    assert short == b"\xee" * 63
    assert processor.file.values[TILECFG][1] == 1
    assert tile(processor) == b"\xcc" * 1024
    processor.tileloadd(0, bytes(3 * 64 + 8))
    assert tile(processor)[64:72] == bytes(8)


def test_no_more_than_64_bytes_are_a_configuration(processor):
    processor.ldtilecfg(configuration() + b"\1" * 64)
    assert processor.file.values[TILECFG] == configuration()
