"""Each built-in program answers, on this processor, what is computed here without it."""

from __future__ import annotations

import itertools
import struct
import time
from fractions import Fraction

import pytest

from fpstate.program import BUILTIN, canary_pattern, parse_probe
from fpstate.program.expected import canary, probe, rounding_sum, spin, x87_pi
from fpstate.program.expected.rounding import Mode

SEEDS = (0, 1, 7, 0xDEADBEEFCAFEBABE, (1 << 64) - 1)
COMPUTING = sorted(set(BUILTIN) - {"probe"})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", COMPUTING)
def test_the_answer_is_the_expected_one_bit_for_bit(name, seed, run, features, needs_flags):
    builtin = BUILTIN[name]
    needs_flags(builtin.cpu_flags)
    features |= builtin.required
    for argument in (0, 1, 3, 17, 50):
        ended = run(builtin.load(), seed, argument, features=features)
        assert (ended.operation, ended.signal) == (0, None)
        assert builtin.check(ended.result, seed, argument, features) is None
        assert len(ended.result) == len(builtin.expected(seed, argument, features))


@pytest.mark.parametrize("name", COMPUTING)
def test_the_default_amount_of_work_is_answered_in_time(name, run, features, needs_flags):
    builtin = BUILTIN[name]
    started = time.process_time()
    builtin.expected(0x5EED, None, features)
    assert time.process_time() - started < 0.5
    argument = builtin.default_argument // (100 if needs_flags(builtin.cpu_flags) else 1)
    ended = run(builtin.load(), 0x5EED, argument, features=features | builtin.required)
    assert builtin.check(ended.result, 0x5EED, argument, features) is None


@pytest.mark.parametrize("name", COMPUTING)
def test_any_flipped_bit_is_found_and_its_field_named(name):
    builtin = BUILTIN[name]
    expected = builtin.expected(3, 5, 0xE7)
    for field, offset, size in builtin.fields:
        size = min(size, len(expected) - offset)
        for position in (offset, offset + size - 1):
            broken = bytearray(expected)
            broken[position] ^= 0x10
            verdict = builtin.check(bytes(broken), 3, 5, 0xE7)
            assert verdict is not None
            assert verdict.startswith(name)
            assert builtin.explain is not None or field in verdict


@pytest.mark.parametrize("name", COMPUTING)
def test_a_short_or_a_long_result_is_wrong(name):
    builtin = BUILTIN[name]
    expected = builtin.expected(3, 5)
    assert builtin.check(expected[:-1], 3, 5) is not None
    assert builtin.check(expected + b"\0", 3, 5) is not None
    assert builtin.check(b"", 3, 5) is not None


@pytest.mark.parametrize("name", sorted(set(COMPUTING) - {"canary"}))
def test_the_seed_varies_the_answer(name):
    builtin = BUILTIN[name]
    assert builtin.expected(1, 20) != builtin.expected(2, 20)


def test_seeds_vary_the_pattern_of_the_canary():
    one, two = canary_pattern(1), canary_pattern(2)
    assert one.keys() == two.keys()
    same = {name for name in one if one[name] == two[name]}
    assert same <= {"fcw", "fsw", "ftw", "mxcsr"}


def machin(bits):
    """Pi within 2**-bits, from exact fractions."""

    def arctangent_of_inverse(n):
        total, power, index = Fraction(0), Fraction(1, n), 0
        while power > Fraction(1, 1 << (bits + 8)):
            total += power / (2 * index + 1) * (-1) ** index
            power /= n * n
            index += 1
        return total

    return 16 * arctangent_of_inverse(5) - 4 * arctangent_of_inverse(239)


def test_pi_is_pi_to_the_stated_ulps():
    pi = machin(96)
    for seed in range(40):
        for index in range(x87_pi.SCALES):
            mantissa, exponent = x87_pi.scaled_pi(seed, index)
            found = Fraction(mantissa) * Fraction(2) ** exponent
            assert abs(found - pi) <= Fraction(x87_pi.ULPS, 1 << 62)


def test_jumping_ahead_agrees_with_stepping():
    lanes = struct.unpack("<12Q", spin.answer(99, 0, 0))
    for _ in range(1000):
        lanes = tuple(spin.step(lane) for lane in lanes)
    assert struct.unpack("<12Q", spin.answer(99, 1000, 0)) == lanes


@pytest.mark.parametrize("seed", SEEDS)
def test_a_control_word_lost_to_its_initial_value_changes_the_sums(seed):
    initial = rounding_sum.sse_pass(seed, Mode.NEAREST, False, False)
    for mode, flush, zeros in itertools.product(Mode, (False, True), (False, True)):
        same = rounding_sum.sse_pass(seed, mode, flush, zeros) == initial
        assert same == ((mode, flush, zeros) == (Mode.NEAREST, False, False))
    initial = rounding_sum.x87_pass(seed, Mode.NEAREST, 64)
    for mode, bits in itertools.product(Mode, (24, 53, 64)):
        same = rounding_sum.x87_pass(seed, mode, bits) == initial
        assert same == ((mode, bits) == (Mode.NEAREST, 64))


# Offsets in the XSAVE frame (SDM Vol. 1, 13.4.1), and what the canary calls the register there.
FRAME = [
    ("rbx", "0x10", "rbx"),
    ("0", "0x400", "fcw"),
    ("0", "0x100000", "fsw"),
    ("0", "0x0100000000", "ftw"),
    ("0", "0x0001000000000000", "fop"),
    ("8", "0x1", "fip"),
    ("8", "0x400000000000", "fip"),
    ("16", "0x1", "fdp"),
    ("16", "0x400000000000", "fdp"),
    ("24", "0x2000", "mxcsr"),
    ("24", "0x1", "mxcsr"),
    ("32", "0x1", "st0"),
    ("152", "0x1", "st7"),
    ("160", "0x8000000000000000", "xmm0"),
    ("408", "0x1", "xmm15"),
]


@pytest.mark.parametrize(("offset", "mask", "register"), FRAME)
@pytest.mark.parametrize("yield_number", [1, 2], ids=["by port", "by gs"])
def test_the_canary_names_a_register_that_was_changed(offset, mask, register, yield_number, run):
    program = BUILTIN["canary"]
    period = struct.pack("<Q", 10).hex()
    ended = run(program.load(), 5, 100, "-i", period, "-c", str(yield_number), offset, mask, features=0x3)
    assert ended.yields == 10
    if register in canary.POINTERS and not canary.pointers_compared(ended.result):
        pytest.skip("a processor that keeps x87's pointers without a pending exception")
    verdict = program.check(ended.result, 5, 100, 0x3)
    assert verdict is not None
    assert f"the first in {register} at iteration {10 * yield_number}" in verdict
    expected = canary_pattern(5, 0x3)[register]
    assert f"instead of {expected:#x}" in verdict


def test_the_canary_sees_upper_halves_of_ymm(run, needs_flags):
    needs_flags(("avx",))
    program = BUILTIN["canary"]
    period = struct.pack("<Q", 10).hex()
    # AVX state lies at 576 of a standard image on every processor that has it (SDM Vol. 1, 13.4.2).
    ended = run(program.load(), 5, 30, "-i", period, "-c", "1", str(576 + 16 * 7), "0x40", features=0x7)
    verdict = program.check(ended.result, 5, 30, 0x7)
    assert verdict is not None
    assert "the first in ymm7 at iteration 10" in verdict


def test_the_canary_survives_yields(run, features):
    program = BUILTIN["canary"]
    period = struct.pack("<Q", 1).hex()
    ended = run(program.load(), 11, 200, "-i", period)
    assert ended.yields == 200
    assert program.check(ended.result, 11, 200, features) is None


def test_the_canary_covers_every_register_of_its_features():
    names = canary_pattern(1, 0xE7).keys()
    assert {f"zmm{i}" for i in range(32)} | {f"k{i}" for i in range(8)} <= names
    assert {f"st{i}" for i in range(8)} | {"fcw", "fsw", "ftw", "mxcsr"} <= names
    assert {f"ymm{i}" for i in range(16)} <= canary_pattern(1, 0x7).keys()
    assert {f"xmm{i}" for i in range(16)} <= canary_pattern(1, 0x3).keys()
    assert canary.slot_name(canary.FIRST_VECTOR + 31, 0xE7) == "zmm31"


def test_the_probe_finds_a_fresh_context(run, features):
    builtin = BUILTIN["probe"]
    for argument in (0, 1):
        ended = run(builtin.load(), 1, argument)
        assert builtin.check(ended.result, 1, argument, features) is None
    registers = parse_probe(run(builtin.load(), 1, 0).result, features)
    assert registers["rsp"] % 16 == 8
    assert registers["rdi"] % 64 == 0
    assert (registers["fcw"], registers["mxcsr"], registers["ftw"]) == (0x37F, 0x1F80, 0xFFFF)
    assert registers["rflags"] == 0x202
    assert registers["return slot"] == 0


def test_the_probe_tells_a_register_that_is_not_fresh():
    builtin = BUILTIN["probe"]
    fresh = builtin.expected(0, 0, 0xE7)
    for name, offset, size in builtin.fields:
        placed = (offset, size) in probe.PLACED
        dirty = bytearray(fresh)
        dirty[offset] ^= 1
        verdict = builtin.check(bytes(dirty), 0, 0, 0xE7)
        assert (verdict is None) == placed
        assert placed or name in verdict


def test_the_probe_reads_both_halves_of_the_vector_file():
    lower = parse_probe(probe.answer(0, 0, 0xE7), 0xE7)
    upper = parse_probe(probe.answer(0, 1, 0xE7), 0xE7)
    assert {f"zmm{i}" for i in range(16)} <= lower.keys()
    assert {f"zmm{i}" for i in range(16, 32)} <= upper.keys()
