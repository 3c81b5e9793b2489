"""Programs that use tiles and PKRU: on this processor where it has them, else with those instructions in software."""

from __future__ import annotations

import itertools
import struct

import pytest

from fpstate.image.tile import configuration_problem, is_loaded, shape
from fpstate.program import BUILTIN, canary_pattern, parse_probe
from fpstate.program.block import AMX, ENTRY_PKRU, PKRU, TILECFG, TILEDATA
from fpstate.program.expected import amx_matmul, canary, probe
from fpstate.program.expected.splitmix import stream

SEEDS = (0, 1, 7, 0xDEADBEEFCAFEBABE, (1 << 64) - 1, *range(100, 120))
SHAPED = 6
"""A seed whose tiles have shapes of their own."""
TILES_SIZE, CONFIGURATION_SIZE, PKRU_SIZE = 8192, 64, 4
EVERY = AMX | PKRU
MATMUL, CANARY, PROBE = BUILTIN["amx_matmul"], BUILTIN["canary"], BUILTIN["probe"]


@pytest.fixture
def offered(features) -> int:
    """What programs may use in these tests: all that this processor has, tiles and PKRU in any case."""
    return features | EVERY


def every(yields: int) -> tuple[str, str]:
    """The option that lets a program yield so often."""
    return "-i", struct.pack("<Q", yields).hex()


# The matrix product


@pytest.mark.parametrize("seed", SEEDS)
def test_the_product_is_the_expected_one_bit_for_bit(seed, run, offered):
    for argument in (0, 1, 3, 17):
        ended = run(MATMUL.load(), seed, argument, features=offered)
        assert (ended.operation, ended.signal) == (0, None)
        assert MATMUL.check(ended.result, seed, argument, offered) is None


def test_the_product_is_that_of_two_matrices():
    """From the whole matrices, without tiles."""
    words = struct.pack("<368Q", *itertools.islice(stream(5), 368))
    values = struct.unpack("<2944b", words)
    a = [values[64 * row : 64 * row + 64] for row in range(30)]
    b = [
        [values[1920 + 512 * (n // 8) + 32 * (k // 4) + 4 * (n % 8) + k % 4] for n in range(16)]
        for k in range(64)
    ]
    product = {(m, n): sum(a[m][k] * b[k][n] for k in range(64)) for m in range(30) for n in range(16)}
    order = itertools.product(range(0, 30, 15), range(0, 16, 8), range(15), range(8))
    assert list(amx_matmul.product(5)) == [product[m + row, n + column] for m, n, row, column in order]


def test_sums_that_are_too_large_wrap(run, offered):
    argument = 20_000
    wrapped = [value for value in amx_matmul.product(1) if abs(argument * value) >= 1 << 31]
    assert wrapped
    ended = run(MATMUL.load(), 1, argument, features=offered)
    assert MATMUL.check(ended.result, 1, argument, offered) is None


def test_tiles_stay_in_use_over_yields(run, offered):
    ended = run(MATMUL.load(), 3, 40, *every(1), features=offered)
    assert ended.yields == 40
    assert MATMUL.check(ended.result, 3, 40, offered) is None


@pytest.mark.parametrize("tile", range(8))
@pytest.mark.parametrize("row", [0, 14])
def test_a_row_of_any_tile_that_is_lost_changes_the_product(tile, row, run, offered):
    at = f"tiles+{1024 * tile + 64 * row}"
    ended = run(MATMUL.load(), 3, 40, *every(10), "-c", "2", at, "0x0100", features=offered)
    verdict = MATMUL.check(ended.result, 3, 40, offered)
    assert verdict is not None
    assert verdict.startswith("amx_matmul: tmm")


# The canary


def test_the_pattern_of_tiles_is_legal_and_each_canary_s_own():
    seen = set()
    seeds = [seed for seed in range(400) if not canary.has_whole_tiles(seed)]
    for seed in seeds:
        pattern = canary_pattern(seed)
        configuration = pattern["tilecfg"].to_bytes(CONFIGURATION_SIZE, "little")
        assert configuration_problem(configuration) == ""
        assert configuration[0] == 1
        for tile in range(8):
            width, rows = shape(configuration, tile)
            assert width % 4 == 0
            data = pattern[f"tmm{tile}"].to_bytes(1024, "little")
            assert not any(any(data[64 * row + width : 64 * row + 64]) for row in range(rows))
            assert not any(data[64 * rows :])
            assert all(any(data[64 * row : 64 * row + width]) for row in range(rows))
        assert shape(configuration, 7) == (64, 16)
        assert pattern["pkru"] & 3 == 0
        seen |= {configuration, pattern["pkru"]}
    assert len(seeds) == 200
    assert len(seen) == 2 * 200


@pytest.mark.parametrize("seed", [0, 1, 5, 1 << 32])
def test_whole_tiles_have_no_byte_that_is_zero(seed):
    """What is handed on to a fresh context shows in every byte, of tiles, vectors, opmasks and the rest."""
    pattern = canary_pattern(seed)
    assert canary.has_whole_tiles(seed)
    configuration = pattern["tilecfg"].to_bytes(CONFIGURATION_SIZE, "little")
    assert configuration_problem(configuration) == ""
    assert {shape(configuration, tile) for tile in range(8)} == {(64, 16)}
    sizes = {"tmm": 1024, "zmm": 64} | dict.fromkeys((*canary.OPMASKS, *canary.GENERAL), 8)
    sizes |= dict.fromkeys(canary.STACK, 10) | {"fsw": 2, "fop": 2}
    whole = {
        name: pattern[name].to_bytes(size, "little")
        for name in pattern
        if (size := sizes.get(name, sizes.get(name[:3])))
    }
    assert len(whole) == 8 + 32 + 8 + len(canary.GENERAL) + 8 + 2
    assert [name for name, data in whole.items() if 0 in data] == []


def test_the_control_registers_of_canaries_differ_from_initial_ones_in_each_byte_that_can():
    for seed in range(2000):
        pattern = canary_pattern(seed, 0x3)
        fcw, mxcsr = pattern["fcw"] ^ 0x37F, pattern["mxcsr"] ^ 0x1F80
        changed = [fcw & 0xFF00, mxcsr & 0xFF, mxcsr & 0xFF00]
        changed += [pattern[name] & byte for name in ("fsw", "fop") for byte in (0xFF, 0xFF00)]
        assert all(changed), seed


def test_the_canary_covers_tiles_and_pkru_where_they_are_offered():
    names = canary_pattern(1, EVERY).keys()
    assert {"pkru", "tilecfg", *(f"tmm{tile}" for tile in range(8))} <= names
    assert canary_pattern(1, TILECFG).keys() & {"pkru", "tilecfg", "tmm0"} == {"tilecfg"}
    assert not canary_pattern(1, 0xE7).keys() & {"pkru", "tilecfg", "tmm0"}
    assert [canary.slot_name(slot) for slot in (62, 63, 64, 64 + 127)] == [
        *("pkru", "tilecfg", "tmm0 row 0", "tmm7 row 15")
    ]


@pytest.mark.parametrize("seed", SEEDS[:8])
@pytest.mark.parametrize("mask", [TILECFG, AMX, PKRU, EVERY], ids=["tilecfg", "tiles", "pkru", "all"])
def test_the_canary_keeps_tiles_and_pkru(seed, mask, run, features, offered):
    told = features & ~EVERY | mask
    ended = run(CANARY.load(), seed, 30, "-t", *every(1), features=told)
    assert (ended.signal, ended.yields) == (None, 30)
    assert CANARY.check(ended.result, seed, 30, told) is None


def within_its_shape(seed: int, tile: int, row: int) -> bool:
    configuration = canary_pattern(seed)["tilecfg"].to_bytes(CONFIGURATION_SIZE, "little")
    return row < shape(configuration, tile)[1]


@pytest.mark.parametrize("seed", [5, SHAPED])
@pytest.mark.parametrize("tile", range(8))
def test_the_canary_names_a_row_that_was_changed(tile, seed, run, offered):
    """Those beyond the tile's shape too, which TILESTORED would not show."""
    for row in range(16):
        at = f"tiles+{1024 * tile + 64 * row}"
        ended = run(CANARY.load(), seed, 4, *every(2), "-c", "1", at, "0x800000", features=offered)
        verdict = CANARY.check(ended.result, seed, 4, offered)
        expected = canary_pattern(seed)[f"tmm{tile}"] >> 512 * row & (1 << 512) - 1
        assert bool(expected) == within_its_shape(seed, tile, row)
        assert f"the first in tmm{tile} row {row} at iteration 2: " in verdict
        assert f"instead of {expected:#x}" in verdict


@pytest.mark.parametrize("at", [16, 20, 48, 55])
def test_the_canary_names_a_changed_configuration(at, run, offered):
    """To another that is legal: a processor makes any other initial."""
    before = canary_pattern(SHAPED)["tilecfg"]
    byte = before >> 8 * at & 0xFF
    changed = before ^ (byte ^ byte // 2) << 8 * at
    assert is_loaded(changed.to_bytes(CONFIGURATION_SIZE, "little"))
    change = ("-c", "1", f"tilecfg+{at}", hex(byte ^ byte // 2))
    ended = run(CANARY.load(), SHAPED, 4, *every(2), *change, features=offered)
    verdict = CANARY.check(ended.result, SHAPED, 4, offered)
    assert f"the first in tilecfg at iteration 2: holds {changed:#x} instead of {before:#x}" in verdict


@pytest.mark.parametrize("mask", ["0x4", "0x80000000"])
def test_the_canary_names_a_changed_pkru(mask, run, offered):
    ended = run(CANARY.load(), 5, 4, *every(2), "-c", "1", "pkru", mask, features=offered)
    verdict = CANARY.check(ended.result, 5, 4, offered)
    expected = canary_pattern(5)["pkru"]
    assert (
        f"the first in pkru at iteration 2: holds {expected ^ int(mask, 0):#x} instead of {expected:#x}"
        in verdict
    )


@pytest.mark.parametrize(
    ("register", "size"),
    [("tiles", TILES_SIZE), ("tilecfg", CONFIGURATION_SIZE), ("pkru", PKRU_SIZE)],
)
def test_the_canary_notices_a_change_of_every_single_byte(register, size, run, offered, in_software):
    """One byte is wrong in each iteration: as many mismatches as there are bytes."""
    ended = run(CANARY.load(), SHAPED, size + 3, *every(1), "-s", register, str(size), features=offered)
    assert ended.yields == size + 3
    _, mismatches = struct.unpack_from("<QQ", ended.result)
    assert mismatches == size


# The probe


def test_probes_find_a_fresh_context(run, offered):
    seen = {}
    for argument in probe.arguments(offered):
        ended = run(PROBE.load(), 1, argument, features=offered)
        assert PROBE.check(ended.result, 1, argument, offered) is None
        seen |= parse_probe(ended.result, offered)
    assert seen["pkru"] == ENTRY_PKRU
    assert [seen[f"tmm{tile}"] for tile in range(8)] == [0] * 8
    assert seen["tilecfg"] == 0
    assert len([name for name in seen if name[1:3] == "mm" and name[0] in "xyz"]) in (16, 32)


@pytest.mark.parametrize("byte", [0, 1, 63, 64, 1023, 1024, 5000, 8191])
def test_probes_report_what_another_left_in_tiles(byte, run, offered, in_software):
    reports = {}
    for argument in probe.arguments(offered):
        ended = run(PROBE.load(), 1, argument, "-p", f"tiles+{byte}", "0x5A", features=offered)
        if problem := PROBE.check(ended.result, 1, argument, offered):
            reports[argument] = problem
            assert parse_probe(ended.result, offered)[f"tmm{byte // 1024}"] == 0x5A << 8 * (byte % 1024)
    value = 0x5A << 8 * (byte % 64)
    row = f"tmm{byte // 1024} row {byte % 1024 // 64}"
    assert reports == {2 + byte // 1024: f"probe: {row} is {value:#x} instead of 0x0"}


@pytest.mark.parametrize("argument", [0, 1, 4])
@pytest.mark.parametrize("byte", range(0, 64, 7))
def test_probes_report_what_another_left_in_the_configuration(byte, argument, run, offered, in_software):
    ended = run(PROBE.load(), 1, argument, "-p", f"tilecfg+{byte}", "0x5A", features=offered)
    assert PROBE.check(ended.result, 1, argument, offered) == (
        f"probe: tilecfg is {0x5A << 8 * byte:#x} instead of 0x0"
    )


@pytest.mark.parametrize("byte", range(PKRU_SIZE))
def test_probes_report_another_s_pkru(byte, run, offered, in_software):
    ended = run(PROBE.load(), 1, 0, "-p", f"pkru+{byte}", "0x5A", features=offered)
    wrong = ENTRY_PKRU & ~(0xFF << 8 * byte) | 0x5A << 8 * byte
    assert PROBE.check(ended.result, 1, 0, offered) == f"probe: pkru is {wrong:#x} instead of {ENTRY_PKRU:#x}"


def test_a_probe_without_tiles_takes_any_argument_for_a_half_of_the_vectors(run, features):
    for argument in (2, 5, 9, 10):
        told = features & ~TILEDATA
        ended = run(PROBE.load(), 1, argument, features=told)
        assert PROBE.check(ended.result, 1, argument, told) is None


# The emulator itself: what a program must not be able to do


@pytest.mark.parametrize(
    ("body", "signal"),
    [
        ("tilezero tmm0", "SIGILL"),
        ("tileloadd tmm0, [rdi + rax]", "SIGILL"),
        ("tdpbssd tmm0, tmm1, tmm2", "SIGILL"),
        ("mov byte ptr [rdi + 64], 2; ldtilecfg [rdi + 64]", "SIGSEGV"),
        ("mov byte ptr [rdi + 64], 1; mov byte ptr [rdi + 80], 65; ldtilecfg [rdi + 64]", "SIGSEGV"),
        ("mov byte ptr [rdi + 64], 1; ldtilecfg [rdi + 64]; tilezero tmm0", "SIGILL"),
        ("mov ecx, 1; rdpkru", "SIGSEGV"),
        ("mov edx, 1; wrpkru", "SIGSEGV"),
        ("sttilecfg [rdi + 64]; tilerelease; xor ecx, ecx; xor edx, edx; xor eax, eax; wrpkru; rdpkru", None),
    ],
)
def test_faults_are_those_of_the_processor(body, signal, run, assemble, offered):
    ended = run(assemble(body + "; mov eax, 0; out 0xF5, eax"), 1, 0, features=offered)
    assert ended.signal == signal
