"""Laws that hold for the layout of any set of components, on recorded and on invented processors."""

import json
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fpstate.arch import Cpu, Format, Geometry, Layout, mask_of
from fpstate.arch.component import MIN_SIZE, components_in

recorded_cpus = st.sampled_from([Cpu.catalog(name) for name in Cpu.catalog_names()])


@st.composite
def invented_cpus(draw: st.DrawFn) -> Cpu:
    """A processor whose components have any size, any order in the standard format, and any flags."""
    numbers = draw(st.permutations(sorted(draw(st.sets(st.integers(2, 62), max_size=12)))))
    geometry, offset = {}, MIN_SIZE
    for number in numbers:
        offset += draw(st.integers(0, 300))
        size, supervisor = draw(st.integers(1, 9000)), draw(st.booleans())
        geometry[number] = Geometry(size, 0 if supervisor else offset, supervisor, draw(st.booleans()), False)
        offset += 0 if supervisor else size
    user = mask_of(0, 1, *(n for n, g in geometry.items() if not g.supervisor))
    supervisor_mask = mask_of(*(n for n, g in geometry.items() if g.supervisor))
    return replace(Cpu.catalog("zen4"), name="invented", xcr0=user, xss=supervisor_mask, geometry=geometry)


cpus = recorded_cpus | invented_cpus()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Cpu, Layout]:
    """A processor and the layout of some of its components in either format."""
    cpu = draw(cpus)
    if draw(st.booleans()):
        return cpu, Layout.compacted(cpu, draw(masks(cpu.xcr0 | cpu.xss)))
    return cpu, Layout.standard(cpu, draw(masks(cpu.xcr0)))


def masks(supported: int) -> st.SearchStrategy[int]:
    bits = list(components_in(supported))
    return st.sets(st.sampled_from(bits)).map(lambda chosen: mask_of(*chosen))


@given(layouts())
def test_components_do_not_overlap_each_other_or_the_header(drawn: tuple[Cpu, Layout]) -> None:
    _, layout = drawn
    assert all(a.end <= b.offset for a, b in pairwise(layout.places))
    assert all(place.offset >= MIN_SIZE for place in layout.places if place.component >= 2)


@given(layouts())
def test_the_size_is_the_furthest_end(drawn: tuple[Cpu, Layout]) -> None:
    _, layout = drawn
    assert layout.size == max([MIN_SIZE, *(place.end for place in layout.places)])


@given(layouts())
def test_a_layout_holds_exactly_its_mask(drawn: tuple[Cpu, Layout]) -> None:
    _, layout = drawn
    assert {place.component for place in layout.places} == set(components_in(layout.mask))
    assert all((component in layout) == bool(layout.mask >> component & 1) for component in range(63))


@given(layouts())
def test_json_gives_back_the_same_layout(drawn: tuple[Cpu, Layout]) -> None:
    _, layout = drawn
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@given(st.data(), cpus)
def test_more_components_never_take_less_room(data: st.DataObject, cpu: Cpu) -> None:
    for make, supported in ((Layout.standard, cpu.xcr0), (Layout.compacted, cpu.xcr0 | cpu.xss)):
        larger = data.draw(masks(supported))
        smaller = larger & data.draw(masks(supported))
        assert make(cpu, smaller).size <= make(cpu, larger).size


@given(st.data(), cpus)
def test_standard_offsets_do_not_depend_on_the_mask(data: st.DataObject, cpu: Cpu) -> None:
    whole = Layout.standard(cpu, cpu.xcr0)
    part = Layout.standard(cpu, data.draw(masks(cpu.xcr0)))
    assert set(part.places) <= set(whole.places)


@given(st.data(), cpus)
def test_compacted_components_follow_each_other_with_less_than_64_bytes_between(
    data: st.DataObject, cpu: Cpu
) -> None:
    layout = Layout.compacted(cpu, data.draw(masks(cpu.xcr0 | cpu.xss)))
    extended = [place for place in layout.places if place.component >= 2]
    assert [place.component for place in extended] == sorted(place.component for place in extended)
    end = MIN_SIZE
    for place in extended:
        aligned = cpu.geometry[place.component].aligned
        assert 0 <= place.offset - end < (64 if aligned else 1)
        assert place.offset % 64 == 0 or not aligned
        end = place.end
    assert layout.size == end
    assert layout.format is Format.COMPACTED
