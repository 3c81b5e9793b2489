"""What the core says of this processor, against CPUID and against what the package derives."""

from types import ModuleType

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import components_in
from fpstate.errors import UnsupportedHere

PKRU = mask_of(Component.PKRU)
XSTATE_LEAF = 0xD


def test_cpuid_and_xgetbv_agree_with_the_host(core: ModuleType) -> None:
    cpu = Cpu.host()
    eax, ebx, ecx, edx = core.cpuid(XSTATE_LEAF, 0)
    assert cpu.xcr0 == edx << 32 | eax
    assert (cpu.enabled_size, cpu.standard_size) == (ebx, ecx)
    assert cpu.enabled_xcr0 == core.xgetbv(0) == core.features()["xcr0"]
    assert cpu.mxcsr_mask == core.mxcsr_mask()


def test_features_are_those_that_cpuid_states(core: ModuleType) -> None:
    found = core.features()
    cpu = Cpu.host()
    assert found["xsavec"] == cpu.has("XSAVEC")
    assert found["xgetbv1"] == cpu.has("XGETBV1")
    assert found["pkru"] == cpu.has("OSPKE")


def test_the_core_saves_all_that_is_enabled_but_pkru(core: ModuleType) -> None:
    found = core.features()
    assert found["managed_mask"] == found["xcr0"] & ~PKRU


def test_no_image_is_larger_than_the_area(core: ModuleType) -> None:
    found, cpu = core.features(), Cpu.host()
    sizes = [
        Layout.standard(cpu, found["xcr0"]).size,
        Layout.compacted(cpu, found["managed_mask"]).size,
    ]
    assert found["area_size"] == max(sizes)


def test_the_layout_states_what_cpuid_says_of_each_component(core: ModuleType) -> None:
    layout = Layout.standard(Cpu.host(), core.features()["xcr0"])
    for component in components_in(layout.mask & ~0b11):
        size, offset, _, _ = core.cpuid(XSTATE_LEAF, component)
        assert (layout.size_of(component), layout.offset(component)) == (size, offset)


@pytest.mark.parametrize("leaf", [0x7FFFFFFF, 0xFFFFFFFF])
def test_cpuid_above_the_highest_leaf_is_zeros(core: ModuleType, leaf: int) -> None:
    assert core.cpuid(leaf) == (0, 0, 0, 0)


def test_in_use_is_a_part_of_what_is_enabled(core: ModuleType) -> None:
    if not core.features()["xgetbv1"]:
        pytest.skip("XGETBV with ECX=1 (CPUID.(0DH,1):EAX[2])")
    assert core.xgetbv(1) & ~core.xgetbv(0) == 0


@pytest.mark.parametrize("index", [2, 5, 0xFFFFFFFF])
def test_other_extended_control_registers_are_refused_without_a_fault(core: ModuleType, index: int) -> None:
    with pytest.raises(UnsupportedHere, match="XGETBV"):
        core.xgetbv(index)


def test_the_time_stamp_counter_s_rate_is_measured_once_and_is_right(core: ModuleType) -> None:
    """No two measurements give the same number of cycles."""
    rate = core.tsc_hz()
    assert {core.tsc_hz() for _ in range(20)} == {rate}
    assert 100_000_000 < rate < 10_000_000_000
