"""What KVM takes for a guest's XCR0, and that the rules of XSETBV say the same of every combination of components."""

from __future__ import annotations

import errno
import itertools

import pytest

from fpstate.arch import Component, mask_of
from fpstate.arch import component as component_table
from fpstate.arch.component import LEGACY, components_in, mask_text, xcr0_problem
from fpstate.engine.kvm.abi import XCR_ENTRY, XCRS_HEADER, XCRS_SIZE
from fpstate.engine.kvm.device import ioctl
from fpstate.errors import KvmError

KNOWN = (*range(10), Component.TILECFG, Component.TILEDATA, Component.APX)
MPX = mask_of(Component.BNDREGS, Component.BNDCSR)
AMX = mask_of(Component.TILECFG, Component.TILEDATA)
ZMM = mask_of(Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM)
X87_ALONE, SSE_ALONE, WITH_AVX = 1, 3, 7


def refusal(vcpu, value):
    """Return the errno of KVM_SET_XCRS, 0 where it is taken."""
    try:
        vcpu.set_xcr0(value)
    except KvmError as error:
        return error.errno
    return 0


def disagreements(vcpu, supported, values):
    """Return the values of which KVM and the rules of XSETBV say different things."""
    found = []
    for value in values:
        expected = 0 if xcr0_problem(value, supported | 1) is None else errno.EINVAL
        if refusal(vcpu, value) != expected:
            found.append(value)
    return found


def set_xcrs(vcpu, *entries, count=None, flags=0):
    """Do KVM_SET_XCRS with any struct kvm_xcrs."""
    data = bytearray(XCRS_SIZE)
    XCRS_HEADER.pack_into(data, 0, len(entries) if count is None else count, flags)
    for index, (number, value) in enumerate(entries):
        XCR_ENTRY.pack_into(data, XCRS_HEADER.size + index * XCR_ENTRY.size, number, 0, value)
    ioctl(vcpu.file, "KVM_SET_XCRS", data)


def test_every_combination_of_components_is_taken_or_refused_as_xsetbv_would(vcpu, supported):
    values = [
        sum(1 << number for number in chosen)
        for length in range(len(KNOWN) + 1)
        for chosen in itertools.combinations(KNOWN, length)
    ]
    assert len(values) == 1 << len(KNOWN)
    assert disagreements(vcpu, supported, values) == []


def test_bits_that_no_component_has_are_refused(vcpu, supported):
    single = [1 << number | 1 for number in range(64)]
    assert disagreements(vcpu, supported, single) == []
    assert refusal(vcpu, 1 << 63 | 1) == errno.EINVAL


def test_whatever_kvm_supports_is_taken_whole(vcpu, supported):
    """The control: not everything is refused."""
    for value in (X87_ALONE, SSE_ALONE, supported):
        assert refusal(vcpu, value) == 0
        assert vcpu.xcr0() == value


@pytest.mark.parametrize("group", [2, mask_of(Component.AVX), MPX, ZMM, mask_of(Component.PKRU)])
def test_components_that_kvm_does_not_have_or_has_besides_would_be_noticed(vcpu, supported, group):
    assert disagreements(vcpu, supported ^ group, range(1 << 10))


@pytest.mark.parametrize("rule", component_table._XCR0_RULES, ids=lambda rule: rule.text)
def test_a_missing_rule_would_be_noticed(vcpu, supported, rule, monkeypatch):
    if not supported & rule.some_of:
        pytest.skip(f"KVM supports none of {mask_text(rule.some_of)} here")
    rest = tuple(each for each in component_table._XCR0_RULES if each is not rule)
    monkeypatch.setattr(component_table, "_XCR0_RULES", rest)
    assert disagreements(vcpu, supported, range(1 << 10))


def test_a_refused_value_leaves_xcr0_as_it_was(vcpu):
    vcpu.set_xcr0(SSE_ALONE)
    for value in (0, 2, 1 << 2 | 1, 1 << 62 | 1):
        assert refusal(vcpu, value) == errno.EINVAL
        assert vcpu.xcr0() == SSE_ALONE


def test_xcr0_starts_with_x87_alone(vcpu):
    assert vcpu.xcr0() == X87_ALONE


def test_before_cpuid_is_told_nothing_but_x87_is_taken(bare_vcpu):
    assert bare_vcpu.xcr0() == X87_ALONE
    assert refusal(bare_vcpu, X87_ALONE) == 0
    for value in (SSE_ALONE, WITH_AVX):
        assert refusal(bare_vcpu, value) == errno.EINVAL


def test_registers_other_than_xcr0_are_passed_over(vcpu):
    set_xcrs(vcpu, (1, 0xFFFF), (0, SSE_ALONE))
    assert vcpu.xcr0() == SSE_ALONE
    set_xcrs(vcpu, (7, 0))
    assert vcpu.xcr0() == SSE_ALONE


def test_no_register_at_all_is_no_error(vcpu):
    vcpu.set_xcr0(SSE_ALONE)
    set_xcrs(vcpu)
    assert vcpu.xcr0() == SSE_ALONE


@pytest.mark.parametrize("wrong", [{"flags": 1}, {"count": 17}])
def test_flags_and_too_many_registers_are_refused(vcpu, wrong):
    with pytest.raises(KvmError) as refused:
        set_xcrs(vcpu, (0, SSE_ALONE), **wrong)
    assert refused.value.errno == errno.EINVAL
    assert vcpu.xcr0() == X87_ALONE


def test_components_that_come_together_are_refused_apart(vcpu, supported):
    there = [mask for mask in (ZMM, MPX, AMX) if supported & mask == mask]
    if not there:
        pytest.skip("KVM supports no components that come together (AVX-512, MPX, AMX)")
    for mask in there:
        base = LEGACY | mask_of(Component.AVX)
        assert refusal(vcpu, base | mask) == 0
        for number in components_in(mask):
            assert refusal(vcpu, base | mask & ~(1 << number)) == errno.EINVAL
