"""What the rules foretell of KVM_SET_XSAVE, and what KVM_GET_XSAVE then reads back."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from types import ModuleType

import pytest
from oracle import Tally, as_reported, disagreement, host_target, mutants, mxcsr_of, share, without

from fpstate.arch import Component, Layout, mask_of
from fpstate.engine.kvm.abi import XSAVE_SIZE
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine
from fpstate.errors import KvmError, UnsupportedHere
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import clean_case

COUNT = 10_000
BARE = 512
"""Numbers of vCPUs that the machine does not count, from here on."""
SEEN_BY_KVM = ("XS011", "XS012", "XS013", "XS015", "XS016", "XS017")
PKRU = mask_of(Component.PKRU)


@pytest.fixture(scope="module")
def target(core: ModuleType) -> Target:
    target = host_target()
    if target.kvm_size > XSAVE_SIZE:
        pytest.skip("KVM_SET_XSAVE of 4096 bytes is too small for this processor's components")
    return target


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    try:
        device = Device()
    except UnsupportedHere as error:
        pytest.skip(str(error))
    with device, Machine(device) as machine:
        yield machine


@pytest.fixture
def guest(machine: Machine) -> KvmVcpu:
    """A vCPU that never runs: its state is set and got."""
    return machine.vcpu()


@pytest.fixture
def bare_guest(machine: Machine) -> Iterator[KvmVcpu]:
    """A guest that was not told its CPUID, and so is not known to have any component but x87 and SSE."""
    vcpu = KvmVcpu(machine, len(machine.vcpus) + BARE)
    yield vcpu
    vcpu.close()


def written(
    guest: KvmVcpu, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES
) -> Tally:
    """Set ``count`` mutated states and read each back."""
    tally = Tally()
    for data, _ in mutants(target, seed, count, lambda image: image.ljust(XSAVE_SIZE, b"\0"), without=0):
        verdict = predict(data, Consumer.KVM, target, rules=rules)
        tally.add(verdict, _judge(guest, data, verdict, target), data)
    return tally


def _judge(guest: KvmVcpu, data: bytearray, verdict: Verdict, target: Target) -> str:
    before = guest.xsave()
    error = set_state(guest, data)
    after = guest.xsave()
    if error or not verdict.accepted:
        if not error or errno.errorcode[error] != verdict.answer:
            return f"KVM answers {error}, not {verdict.answer}"
        return "" if after == before else "a refused state changed the vCPU"
    visible = target.guest_xcr0 | 3
    if mxcsr_of(after) != verdict.reported_mxcsr:
        return f"MXCSR reads back {mxcsr_of(after):#x}, not {verdict.reported_mxcsr:#x}"
    if int.from_bytes(after[512:520], "little") & ~PKRU != verdict.reported & visible & ~PKRU:
        return "XSTATE_BV reads back as if something else were loaded"
    shown = visible & ~(PKRU & verdict.kept)  # what is kept is in the register, and not in the readback
    return disagreement(data, as_reported(verdict), target, after, pattern=before, visible=shown)


def set_state(guest: KvmVcpu, data: bytearray) -> int:
    """Set the state and return errno."""
    try:
        guest.set_xsave(data)
    except KvmError as error:
        return error.errno
    return 0


def test_set_xsave_does_what_the_rules_foretell(guest, target):
    """10,000 states in CI, 100,000 with FPSTATE_LONG=1."""
    count = share(COUNT)
    tally = written(guest, target, 31, count)
    tally.assert_agreement(count)
    assert any("with loss of MXCSR" in verdict for verdict in tally.counts) is target.compacted_restore


def test_components_that_the_guest_cannot_see_are_taken_and_not_given_back(bare_guest, target):
    blind = target.with_(guest_xcr0=0)
    count = share(1000)
    tally = written(bare_guest, blind, 32, count)
    tally.assert_agreement(count)
    if target.kvm_xcr0 & ~3:
        assert any("with loss of AVX" in verdict for verdict in tally.counts)
        assert written(bare_guest, target, 32, 500).disagreements


@pytest.mark.parametrize("rule", SEEN_BY_KVM)
def test_a_missing_rule_is_noticed(guest, target, rule):
    assert written(guest, target, 33, 3000, without(rule)).disagreements


def test_a_payload_that_ends_in_a_component_is_refused_before_kvm_reads_on(guest, target):
    """The rules refuse a payload that ends in a component; the ioctl reads whatever lies behind it instead."""
    data = clean_case(Consumer.KVM, target.cpu, permitted=0).data
    assert predict(data, Consumer.KVM, target).accepted
    assert set_state(guest, data) == 0
    short = data[: Layout.standard(target.cpu, target.kvm_xcr0).size - 8]
    assert "XS002" in {f.id for f in predict(short, Consumer.KVM, target).refusals}
