"""Layouts are inferred where one alone fits, and refused everywhere else."""

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import components_in
from fpstate.errors import AmbiguousLayout, LayoutError
from fpstate.source.inference import AMD, INTEL, KNOWN, disputed, infer, is_intel, layout_of


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_every_processor_of_the_catalog_is_told_by_xcr0_and_size(name):
    cpu = Cpu.catalog(name)
    layout = Layout.standard(cpu, cpu.xcr0)
    assert infer(cpu.xcr0, layout.size) == layout
    row = next(row for row in KNOWN if row.xcr0 == cpu.xcr0 and layout_of(row.places, row.xcr0) == layout)
    assert row.recorded == (cpu.source != "model")


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_operating_systems_that_enable_less_are_told_too(name):
    cpu = Cpu.catalog(name)
    for component in components_in(cpu.xcr0 & ~3):
        xcr0 = cpu.xcr0 & (1 << component) - 1
        layout = Layout.standard(cpu, xcr0)
        assert infer(xcr0, layout.size) == layout


def test_names_in_the_table_are_the_catalogs():
    named = [name for row in KNOWN for name in row.cpus if "not in the catalog" not in name]
    assert sorted(named) == list(Cpu.catalog_names())


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_a_processor_stands_in_the_row_of_its_layout(name):
    cpu = Cpu.catalog(name)
    (row,) = (row for row in KNOWN if name in row.cpus)
    assert (row.xcr0, layout_of(row.places, row.xcr0)) == (cpu.xcr0, Layout.standard(cpu, cpu.xcr0))


def test_amd_and_intel_differ_by_size_alone():
    assert infer(0x2E7, 2440) == layout_of(AMD, 0x2E7)
    assert infer(0x2E7, 2696) == layout_of(INTEL, 0x2E7)
    assert infer(0xE7, 2432) == layout_of(AMD, 0xE7)
    assert not is_intel(infer(0xE7, 2432))
    assert is_intel(infer(0xE7, 2688))


@pytest.mark.parametrize("size", [1088, 2440, 2688, 2696, 11008])
def test_without_xcr0_several_processors_fit_and_none_is_taken(size):
    with pytest.raises(AmbiguousLayout) as caught:
        infer(0, size)
    assert caught.value.exit_code == 4
    assert len(caught.value.candidates) > 1


def test_without_xcr0_what_is_present_can_rule_all_but_one_out():
    assert infer(0, 1088, 0x7) == layout_of(INTEL, 0x1F)
    with pytest.raises(AmbiguousLayout):
        infer(0, 1088, 0x3)


@pytest.mark.parametrize(
    ("xcr0", "size"), [(0x7, 840), (0xE7, 2440), (0x7, 576), (0x1007, 832), (1 << 63, 576)]
)
def test_what_nobody_has_is_refused(xcr0, size):
    with pytest.raises(LayoutError, match="no known layout"):
        infer(xcr0, size)


def test_components_are_disputed_where_a_processor_with_all_of_xcr0_keeps_them_elsewhere():
    assert disputed(0xE7) == 0xE0
    assert disputed(0x2E7) == 0x2E0
    assert disputed(0x207) == 0x200
    assert disputed(0x7) == 0
    assert disputed(0x2FF) == 0
    assert disputed(0x602E7) == 0
