"""Laws of images, registers, lanes and 80-bit values."""

import math
import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.image import Float80, Image, Kind, Rounding, abridged_tag, differences, full_tag, initial_value
from fpstate.image.lane import LANES, join, split

FLOATS = {"f16": ("<e", 2), "f32": ("<f", 4), "f64": ("<d", 8)}
NUMBERS = {Kind.ZERO, Kind.NORMAL, Kind.DENORMAL}


def _layouts() -> list[Layout]:
    cpus = [Cpu.catalog(name) for name in Cpu.catalog_names()]
    standard = [Layout.standard(cpu) for cpu in cpus]
    return standard + [Layout.compacted(cpu, cpu.user_mask | cpu.supervisor_mask) for cpu in cpus]


layouts = st.sampled_from(_layouts())
edge_exponents = st.sampled_from([0, 1, 2, 0x3FFE, 0x3FFF, 0x4000, 0x7FFD, 0x7FFE, 0x7FFF])
edge_significands = st.sampled_from(
    [0, 1, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 63 | 1, 3 << 62, (1 << 64) - 1]
)
float80s = st.builds(
    Float80.of,
    st.integers(0, 1),
    edge_exponents | st.integers(0, 0x7FFF),
    edge_significands | st.integers(0, (1 << 64) - 1),
)
numbers = float80s.filter(lambda value: value.kind in NUMBERS)
modes = st.sampled_from(Rounding)


@st.composite
def writes(draw: st.DrawFn, layout: Layout) -> list[tuple[str, int]]:
    """Assignments to registers that a layout holds, of random bits or of the initial value."""
    registers = Image.initial(layout).registers
    names = draw(st.lists(st.sampled_from(registers.names()), max_size=12))
    return [(name, draw(_value(name, registers.size_of(name)))) for name in names]


def _value(name: str, size: int) -> st.SearchStrategy[int]:
    bits = st.binary(min_size=size, max_size=size).map(lambda data: int.from_bytes(data, "little"))
    return bits | st.just(initial_value(name))


def _poisoned(layout: Layout, seed: bytes) -> Image:
    image = Image((bytearray(seed * (layout.size // len(seed) + 1)))[: layout.size], layout)
    image.store.view[512:576] = bytes(8) + layout.xcomp_bv.to_bytes(8, "little") + bytes(48)
    return image


@given(st.data(), layouts, st.binary(min_size=1, max_size=16))
def test_what_was_in_the_buffer_never_matters(data: st.DataObject, layout: Layout, seed: bytes) -> None:
    fresh, poisoned = Image.initial(layout), _poisoned(layout, seed)
    for name, value in data.draw(writes(layout)):
        fresh.registers[name] = poisoned.registers[name] = value
        assert poisoned == fresh
    assert dict(poisoned.registers) == dict(fresh.registers)
    assert poisoned.canonical(exact=True) == fresh.canonical(exact=True)


@given(st.data(), layouts)
def test_an_untouched_register_keeps_its_value(data: st.DataObject, layout: Layout) -> None:
    image = Image.initial(layout)
    written: dict[str, int] = {}
    names = set(image.registers.names(widest=True)) - {"ftag_abridged", "fctrl", "fstat"}
    for name, value in data.draw(writes(layout)):
        if name in names:
            image.registers[name] = written[name] = value
    for name in names:
        assert image.registers[name] == written.get(name, initial_value(name))


@given(st.data(), st.tuples(layouts, layouts))
def test_equal_registers_make_equal_images_in_any_two_layouts(
    data: st.DataObject, pair: tuple[Layout, Layout]
) -> None:
    source, target = (Image.initial(layout) for layout in pair)
    for name, value in data.draw(writes(pair[0])):
        source.registers[name] = value
    missing = []
    for name, value in source.registers.in_use(exact=True).items():
        if name in target.registers:
            target.registers[name] = value
        else:
            missing.append(name)
    target.registers["ftag_abridged"] = source.registers["ftag_abridged"]
    if missing:
        assert source != target
        assert differences(source, target)
    else:
        assert source == target
        assert differences(source, target, exact=True) == []
        assert source.in_use == target.in_use


@given(st.data(), layouts)
def test_differences_are_none_exactly_when_images_are_equal(data: st.DataObject, layout: Layout) -> None:
    a, b = Image.initial(layout), Image.initial(layout)
    for image in (a, b):
        for name, value in data.draw(writes(layout)):
            image.registers[name] = value
    for exact in (False, True):
        found = differences(a, b, exact=exact)
        assert (found == []) == (a.canonical(exact=exact) == b.canonical(exact=exact))
        for each in found:
            assert (each.a, each.b) == tuple(
                image.registers.canonical(each.register, exact=exact) for image in (a, b)
            )


@given(st.data(), layouts)
def test_in_use_names_the_components_that_registers_name(data: st.DataObject, layout: Layout) -> None:
    image = Image.initial(layout)
    for name, value in data.draw(writes(layout)):
        image.registers[name] = value
    rebuilt = Image.initial(layout)
    for name, value in image.registers.in_use().items():
        rebuilt.registers[name] = value
    rebuilt.registers["ftag_abridged"] = image.registers["ftag_abridged"]
    assert rebuilt == image
    assert rebuilt.in_use == image.in_use
    assert image.in_use & ~image.xstate_bv == 0


@given(float80s)
def test_text_loses_nothing(value: Float80) -> None:
    assert Float80.parse(str(value)) == value


@given(numbers)
def test_fractions_are_exact_both_ways(value: Float80) -> None:
    if value.kind is not Kind.ZERO:
        assert Float80.from_fraction(value.fraction()) == value
    for mode in Rounding:
        assert Float80.rounded(value.fraction(), mode, sign=value.sign) == (value, True)


@given(st.fractions() | st.builds(Fraction, st.integers(), st.integers(1)), modes)
def test_rounding_ends_at_a_neighbour_on_the_right_side(exact: Fraction, mode: Rounding) -> None:
    value, is_exact = Float80.rounded(exact, mode)
    result = value.fraction()
    assert is_exact == (result == exact)
    assert abs(result - exact) * 2**63 <= abs(exact)
    if mode is Rounding.DOWN:
        assert result <= exact
    elif mode is Rounding.UP:
        assert result >= exact
    elif mode is Rounding.ZERO:
        assert abs(result) <= abs(exact)
    else:
        assert abs(result - exact) * 2**64 <= abs(exact)


@given(st.integers(0, (1 << 64) - 1))
def test_doubles_survive_the_80_bit_format(bits: int) -> None:
    data = bits.to_bytes(8, "little")
    value = Float80.from_float(struct.unpack("<d", data)[0])
    assert struct.pack("<d", value.to_float_lossy()) == data


@given(st.lists(float80s, min_size=8, max_size=8), st.integers(0, 255), st.integers(0, 7))
def test_the_full_tag_word_holds_the_abridged_one(slots: list[Float80], abridged: int, top: int) -> None:
    assert abridged_tag(full_tag(abridged, top, [int(slot) for slot in slots])) == abridged


@pytest.mark.parametrize("lane_type", LANES)
@given(data=st.binary(min_size=64, max_size=64))
def test_lanes_read_and_written_back_change_no_bit(lane_type: str, data: bytes) -> None:
    bits = int.from_bytes(data, "little")
    assert join(split(bits, 64, lane_type), 64, lane_type) == bits


@pytest.mark.parametrize("lane_type", FLOATS)
@given(value=st.floats(allow_nan=False))
def test_lanes_round_as_the_c_library_does(lane_type: str, value: float) -> None:
    form, size = FLOATS[lane_type]
    try:
        expected = struct.pack(form, value)
    except OverflowError:
        expected = struct.pack(form, math.copysign(math.inf, value))
    assert join([value], size, lane_type) == int.from_bytes(expected, "little")


@given(st.floats(width=32, allow_nan=False))
def test_bf16_is_the_upper_half_of_a_float_rounded_to_even(value: float) -> None:
    bits = int.from_bytes(struct.pack("<f", value), "little")
    assert join([value], 2, "bf16") == bits + 0x7FFF + (bits >> 16 & 1) >> 16
