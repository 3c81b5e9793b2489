"""The search for a canary's words: it finds each, and nothing else."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from fpstate.arch import Component, Cpu, Layout
from fpstate.arch.component import AMX, LEGACY
from fpstate.errors import PoolExhausted
from fpstate.image import Image
from fpstate.program import BUILTIN, canary_pattern
from fpstate.program.block import ENTRY_PKRU, KNOWN_FEATURES, PKRU
from fpstate.program.expected.canary import has_whole_tiles
from fpstate.vso import AuditReport, Canaries, Leak
from fpstate.vso.audit import UNKNOWN, WORD
from fpstate.vso.vcpu import Exit, ExitKind

MINE, ITS, SHARED = 0x1122334455667788, 0x99AABBCCDDEEFF00, 0x0123456789ABCDEF
WIDE = SHARED << 128 | MINE << 64 | 0x37F


@pytest.fixture
def canaries() -> Canaries:
    return Canaries(
        {"mine": {"zmm0": WIDE, "mxcsr": 0x1FA5}, "its": {"zmm7": ITS, "k1": SHARED, "mxcsr": 0x5F80}}
    )


def test_a_word_of_another_is_found_with_its_place_and_offset(canaries):
    data = bytearray(576)
    struct.pack_into("<Q", data, 8 * 21, ITS)
    report = canaries.search("a buffer", data, owner="mine")
    assert report.leaks == [Leak("its", "a buffer", 168, ITS)]
    assert (report.leaked_bytes, report.searched_bytes, report.clean) == (8, 576, False)
    assert str(report.leaks[0]) == "0x99aabbccddeeff00 of its at byte 168 of a buffer"


def test_the_owner_may_hold_its_own_words(canaries):
    data = struct.pack("<QQ", MINE, ITS)
    assert [leak.owner for leak in canaries.search("a buffer", data, owner="mine").leaks] == ["its"]
    assert [leak.owner for leak in canaries.search("a buffer", data, owner="its").leaks] == ["mine"]
    assert [leak.owner for leak in canaries.search("a buffer", data).leaks] == ["mine", "its"]


def test_a_word_that_two_have_is_evidence_against_neither(canaries):
    assert canaries.search("free memory", struct.pack("<Q", SHARED)).clean


def test_small_words_are_no_evidence(canaries):
    assert canaries.search("free memory", struct.pack("<QQ", 0x37F, 0x1F80)).clean


def test_clean_memory_is_clean_and_a_ragged_end_is_left_out(canaries):
    report = canaries.search("free memory", bytes(19))
    assert report.clean
    assert report.searched_bytes == 16


def test_all_forms_of_memory_can_be_searched(canaries):
    data = struct.pack("<Q", MINE)
    for form in (data, bytearray(data), memoryview(bytearray(data))):
        assert len(canaries.search("memory", form).leaks) == 1


INITIAL = {"mxcsr": 0x1F80, "fcw": 0x37F, "pkru": ENTRY_PKRU} | dict.fromkeys(
    ("zmm0", "zmm7", "ymm0", "k1", "st0"), 0
)


@pytest.mark.parametrize("lane", range(8))
def test_every_lane_of_a_register_is_searched(canaries, lane):
    report = canaries.search_fresh("a fresh context", {"zmm0": 0, "zmm7": ITS << 64 * lane}, INITIAL)
    assert report.leaks == [Leak("its", "zmm7 of a fresh context", WORD * lane, ITS)]


def test_register_values_that_are_initial_are_clean(canaries):
    report = canaries.search_fresh("a fresh context", INITIAL, INITIAL)
    assert report.clean
    assert report.searched_bytes == len(INITIAL) * WORD


@pytest.mark.parametrize("at", range(8))
def test_a_single_byte_of_a_fresh_register_is_told_with_whose_it_is(canaries, at):
    byte = ITS >> 8 * at & 0xFF
    report = canaries.search_fresh("a fresh context", {"zmm7": byte << 8 * at}, INITIAL)
    if byte:
        assert report.leaks == [Leak("its", "zmm7 of a fresh context", at, byte, 1)]
        assert str(report.leaks[0]) == f"1 byte of its at byte {at} of zmm7 of a fresh context: {byte:#x}"
        assert report.leaked_bytes == 1
    else:
        assert report.clean


def test_bytes_that_no_canary_has_are_a_leak_all_the_same(canaries):
    report = canaries.search_fresh("a fresh context", {"k1": 0xEE00EE << 8, "mxcsr": 0x1FA5}, INITIAL)
    assert report.leaks == [
        Leak(UNKNOWN, "k1 of a fresh context", 1, 0xEE00EE, 2),
        Leak("mine", "mxcsr of a fresh context", 0, 0xA5, 1),
    ]


def test_a_byte_of_a_narrow_register_is_that_of_the_wide_one(canaries):
    (leak,) = canaries.search_fresh("a fresh context", {"ymm0": WIDE & 0xFF}, INITIAL).leaks
    assert (leak.owner, leak.size) == ("mine", 1)


@pytest.mark.parametrize("at", [0, 7, 8, 63])
def test_a_single_byte_in_memory_that_must_be_empty_is_a_leak(canaries, at):
    data = bytearray(64)
    assert canaries.search_empty("the spill area", data).clean
    data[at] = 0x5A
    report = canaries.search_empty("the spill area", data)
    assert report.leaks == [Leak(UNKNOWN, "the spill area", at, 0x5A, 1)]
    assert str(report.leaks[0]) == f"1 byte of an unknown context at byte {at} of the spill area: 0x5a"
    assert report.searched_bytes == 64


def test_a_word_in_memory_that_must_be_empty_is_told_with_whose_it_is(canaries):
    (leak,) = canaries.search_empty("free pool memory", struct.pack("<QQ", 0, ITS)).leaks
    assert leak == Leak("its", "free pool memory", 8, ITS)


class StandIn:
    """What the search looks at of a VSO."""

    def __init__(self, data: bytes | None) -> None:
        self.buffer = None if data is None else SimpleNamespace(view=memoryview(data))


def manager_of(*buffers: bytes | None, free: tuple[bytes, ...] = ()) -> SimpleNamespace:
    vsos = [StandIn(data) for data in buffers]
    pool = SimpleNamespace(free_memory=lambda: map(memoryview, free))
    return SimpleNamespace(vsos=lambda: vsos, pool=pool)


def test_buffers_are_searched_with_their_owners_in_mind(canaries):
    manager = manager_of(struct.pack("<Q", MINE), struct.pack("<Q", MINE), None, bytes(64))
    first, second, *_ = manager.vsos()
    report = canaries.search_manager(manager, {first: "mine"})
    assert report.leaks == [Leak("mine", "the buffer of VSO 1", 0, MINE)]
    assert report.searched_bytes == 80
    report = canaries.search_manager(manager, {first: "mine", second: "its"})
    assert report.leaks == [Leak("mine", "the buffer of its", 0, MINE)]


def test_free_memory_belongs_to_nobody(canaries):
    manager = manager_of(free=(bytes(64), struct.pack("<QQ", 0, MINE)))
    report = canaries.search_manager(manager, {})
    assert report.leaks == [Leak("mine", "free pool memory", 8, MINE)]


def test_reports_add_up():
    total = AuditReport(canaries=2)
    total += AuditReport([Leak("a", "b", 0, 1)], ["c"], 1, 8)
    total += AuditReport(searched_bytes=4)
    assert total == AuditReport([Leak("a", "b", 0, 1)], ["c"], 3, 12)
    assert not total.clean
    assert not AuditReport(damaged=["c"]).clean
    total += AuditReport(unjudged=["d"], components=4, unsearched={"X": "y"})
    total += AuditReport(components=1)
    assert (total.unjudged, total.components, total.unsearched) == (["d"], 5, {"X": "y"})


def test_a_context_that_ran_out_of_time_or_memory_is_not_judged():
    report = AuditReport()
    report.judge("a", Exit(ExitKind.EXPIRED))
    report.judge("b", Exit(ExitKind.REFUSED, error=PoolExhausted("no memory")))
    report.judge("c", None)
    assert report.unjudged == ["a: used up its processor time", "b: refused: no memory", "c: did not end"]
    assert (report.damaged, report.found, report.clean) == ([], False, False)


@pytest.mark.parametrize("kind", [ExitKind.FAULT, ExitKind.DENIED, ExitKind.FAILED, ExitKind.REFUSED])
def test_a_context_that_ended_in_any_other_way_is_damaged(kind):
    report = AuditReport()
    report.judge("a", Exit(kind))
    assert (len(report.damaged), report.unjudged, report.found) == (1, [], True)


def test_a_report_without_findings_is_clean():
    assert AuditReport(searched_bytes=1).clean


# Tiles and PKRU

SEEDS = range(1 << 32, (1 << 32) + 24)


@pytest.fixture(scope="module")
def tile_canaries() -> Canaries:
    """As many as an audit has of everything that a processor with AMX has."""
    return Canaries({f"canary {seed}": canary_pattern(seed, KNOWN_FEATURES) for seed in SEEDS})


def amx_image(seed: int) -> Image:
    """A saved state with a canary's tiles and nothing else of it."""
    image = Image.initial(Layout.compacted(Cpu.catalog("emerald-rapids"), LEGACY | AMX))
    for name, value in canary_pattern(seed, AMX).items():
        if name.startswith("t"):
            image.registers[name] = value
    return image


def test_the_tiles_of_another_are_found_where_they_lie(tile_canaries):
    image = amx_image(SEEDS[3])
    place = image.layout.place(Component.TILEDATA)
    leaks = tile_canaries.search("a buffer", image.to_bytes(), owner=f"canary {SEEDS[4]}").leaks
    assert {leak.owner for leak in leaks} == {f"canary {SEEDS[3]}"}
    tiles = [leak for leak in leaks if leak.offset >= place.offset]
    configuration = [leak for leak in leaks if leak.offset < place.offset]
    assert len(tiles) > 200
    assert max(leak.offset for leak in tiles) == place.end - WORD
    assert configuration
    assert tile_canaries.search("a buffer", image.to_bytes(), owner=f"canary {SEEDS[3]}").clean


@pytest.mark.parametrize("row", range(0, 16, 5))
def test_a_single_row_of_a_tile_is_enough(tile_canaries, row):
    data = bytearray(8192)
    tile = canary_pattern(SEEDS[0], AMX)["tmm7"].to_bytes(1024, "little")
    data[64 * row : 64 * row + 64] = tile[64 * row : 64 * row + 64]
    leaks = tile_canaries.search("free pool memory", data).leaks
    assert [leak.offset for leak in leaks] == list(range(64 * row, 64 * row + 64, 8))


def test_configurations_tell_whose_they_are_but_those_of_whole_tiles(tile_canaries):
    """Canaries with whole tiles have the same: what is found is told as the first one's."""
    found = [
        tile_canaries.search_fresh(
            "a fresh context", {"tilecfg": canary_pattern(seed, AMX)["tilecfg"]}, {"tilecfg": 0}
        )
        for seed in SEEDS
    ]
    assert all(report.leaks for report in found)
    assert [{leak.owner for leak in report.leaks} for report in found] == [
        {f"canary {SEEDS[0] if has_whole_tiles(seed) else seed}"} for seed in SEEDS
    ]


def test_the_configuration_of_the_matrix_product_is_no_canary_s(tile_canaries):
    program = BUILTIN["amx_matmul"].load().memory()
    assert tile_canaries.search("memory", program[: len(program) // 8 * 8]).clean


def test_a_pkru_is_told_where_it_is_read_as_one(tile_canaries):
    value = canary_pattern(SEEDS[2], PKRU)["pkru"]
    (leak,) = tile_canaries.search_fresh("a fresh context", {"pkru": value}, INITIAL).leaks
    assert (leak.owner, leak.place, leak.word) == (f"canary {SEEDS[2]}", "pkru of a fresh context", value)
    assert tile_canaries.search_fresh("a fresh context", {"pkru": ENTRY_PKRU}, INITIAL).clean
    assert tile_canaries.search("a buffer", struct.pack("<Q", value)).clean
