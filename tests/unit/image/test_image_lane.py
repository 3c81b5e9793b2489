"""Lanes: registers as rows of numbers."""

import math
import struct

import pytest

from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import NumberError, RegisterError
from fpstate.image import Image, Registers
from fpstate.image.lane import LANES, join, split


@pytest.fixture
def registers() -> Registers:
    return Image.initial(Layout.compacted(Cpu.catalog("sapphire-rapids"))).registers


def test_the_lowest_lane_comes_first(registers: Registers) -> None:
    registers["zmm3"] = int.from_bytes(struct.pack("<16f", *range(16)), "little")
    assert registers.lanes("zmm3", "f32") == tuple(float(number) for number in range(16))
    assert registers.lanes("xmm3", "f32") == (0.0, 1.0, 2.0, 3.0)
    assert registers.lanes("ymm3h", "f32") == (4.0, 5.0, 6.0, 7.0)


@pytest.mark.parametrize("lane_type", LANES)
def test_every_type_fills_every_vector_and_tile(registers: Registers, lane_type: str) -> None:
    for name in ("xmm0", "ymm17", "zmm31", "tmm7", "k1"):
        count = registers.size_of(name) // LANES[lane_type].size
        values = [index % 2 for index in range(count)]
        registers.set_lanes(name, lane_type, values)
        assert registers.lanes(name, lane_type) == tuple(values)


def test_integers_have_their_sign(registers: Registers) -> None:
    registers.set_lanes("xmm1", "i32", [-1, 2**31 - 1, -(2**31), 0])
    assert registers.lanes("xmm1", "u32") == (2**32 - 1, 2**31 - 1, 2**31, 0)
    assert registers.lanes("xmm1", "i64") == ((2**31 - 1 << 32) + 2**32 - 1, 2**31)
    assert registers.lanes("xmm1", "i8")[:4] == (-1, -1, -1, -1)


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F800000, 0x3F80),  # 1
        (0x3F808000, 0x3F80),  # halfway, down to even
        (0x3F818000, 0x3F82),  # halfway, up to even
        (0x3F808001, 0x3F81),
        (0x3F807FFF, 0x3F80),
        (0x3FFFFFFF, 0x4000),  # carries into the exponent
        (0x7F7FFFFF, 0x7F80),  # the largest float overflows
        (0x80000001, 0x8000),
        (0x00018000, 0x0002),  # denormals round alike
        (0xFF800000, 0xFF80),
    ],
)
def test_bf16_rounds_to_nearest_even(bits: int, rounded: int) -> None:
    (value,) = struct.unpack("<f", bits.to_bytes(4, "little"))
    assert join([value], 2, "bf16") == rounded


def test_bf16_is_rounded_once_from_a_double() -> None:
    just_over_a_tie = 1 + 2.0**-8 + 2.0**-40  # a detour by f32 would make it the tie
    assert join([just_over_a_tie], 2, "bf16") == 0x3F81
    assert join([1 + 2.0**-8], 2, "bf16") == 0x3F80


@pytest.mark.parametrize("lane_type", ["f16", "bf16", "f32", "f64"])
def test_nans_stay_nans_with_sign_payload_and_signalling_bit(lane_type: str) -> None:
    lane = LANES[lane_type]
    fraction = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}[lane_type]
    infinity = (1 << 8 * lane.size - 1) - (1 << fraction)
    for bits in (infinity | 1, infinity | 1 << fraction - 1 | 5, 1 << 8 * lane.size - 1 | infinity | 2):
        (value,) = split(bits, lane.size, lane_type)
        assert math.isnan(value)
        assert join([value], lane.size, lane_type) == bits


def test_a_payload_that_does_not_fit_leaves_a_nan() -> None:
    (nan,) = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000001))
    assert math.isnan(split(join([nan], 4, "f32"), 4, "f32")[0])


def test_too_large_becomes_an_infinity_and_negative_zero_stays(registers: Registers) -> None:
    registers.set_lanes("xmm0", "f32", [1e300, -1e300, -0.0, 2**200])
    first, second, third, fourth = registers.lanes("xmm0", "f32")
    assert (first, second, fourth) == (math.inf, -math.inf, math.inf)
    assert math.copysign(1, third) == -1


@pytest.mark.parametrize(
    ("name", "lane_type", "values"),
    [
        ("xmm0", "f80", [0.0]),
        ("xmm0", "f32", [0.0] * 3),
        ("xmm0", "u8", [256, *[0] * 15]),
        ("xmm0", "i8", [128, *[0] * 15]),
        ("xmm0", "u64", [0.5, 1]),
        ("st0", "f32", [0.0] * 2),
    ],
)
def test_lanes_that_do_not_fit_are_refused_and_nothing_is_written(
    registers: Registers, name: str, lane_type: str, values: list[float]
) -> None:
    with pytest.raises(RegisterError, match=name):
        registers.set_lanes(name, lane_type, values)
    assert not registers.in_use()


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(NumberError) as caught:
        split(0, 16, "fp32")
    assert "bf16" in caught.value.help
