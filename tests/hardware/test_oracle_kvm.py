"""What the rules foretell of KVM_SET_XSAVE, and what KVM_GET_XSAVE then reads back."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping
from types import ModuleType

import pytest
from oracle import Tally, disagreement, host_target, mutants, mxcsr_of, share, without

from fpstate.arch import Component, mask_of
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import clean_case

COUNT = 10_000
KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE01, 0xAE41
KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2 = 0xC008AE05, 0x4008AE90
KVM_GET_XSAVE, KVM_SET_XSAVE = 0x9000AEA4, 0x5000AEA5
XSAVE_SIZE, ENTRIES = 4096, 256
SEEN_BY_KVM = ("XS011", "XS012", "XS013", "XS015", "XS016", "XS017")
PKRU = mask_of(Component.PKRU)


class Guest:
    """A vCPU that never runs: its state is set and got."""

    def __init__(self, kvm: int, *, with_cpuid: bool = True) -> None:
        self._files = [vm := fcntl.ioctl(kvm, KVM_CREATE_VM, 0)]
        self._vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
        self._files.append(self._vcpu)
        if with_cpuid:
            cpuid = bytearray(struct.pack("<II", ENTRIES, 0) + bytes(40 * ENTRIES))
            fcntl.ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
            fcntl.ioctl(self._vcpu, KVM_SET_CPUID2, cpuid)

    def set(self, data: bytes | bytearray) -> int:
        """Set the state and return errno."""
        try:
            fcntl.ioctl(self._vcpu, KVM_SET_XSAVE, bytearray(data))
        except OSError as error:
            return error.errno or -1
        return 0

    def get(self) -> bytes:
        """Return the state."""
        data = bytearray(XSAVE_SIZE)
        fcntl.ioctl(self._vcpu, KVM_GET_XSAVE, data)
        return bytes(data)

    def close(self) -> None:
        """Close the vCPU and its machine."""
        for file in reversed(self._files):
            os.close(file)


@pytest.fixture(scope="module")
def target(core: ModuleType) -> Target:
    target = host_target()
    if target.kvm_size > XSAVE_SIZE:
        pytest.skip("KVM_SET_XSAVE of 4096 bytes is too small for this processor's components")
    return target


@pytest.fixture(scope="module")
def kvm() -> Iterator[int]:
    try:
        file = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/kvm: {error.strerror}")
    yield file
    os.close(file)


@pytest.fixture
def guest(kvm: int) -> Iterator[Guest]:
    guest = Guest(kvm)
    yield guest
    guest.close()


@pytest.fixture
def bare_guest(kvm: int) -> Iterator[Guest]:
    """A guest that was not told its CPUID, and so is not known to have any component but x87 and SSE."""
    guest = Guest(kvm, with_cpuid=False)
    yield guest
    guest.close()


def written(guest: Guest, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES) -> Tally:
    """Set ``count`` mutated states and read each back."""
    tally = Tally()
    for data, _ in mutants(target, seed, count, lambda image: image.ljust(XSAVE_SIZE, b"\0")):
        verdict = predict(data, Consumer.KVM, target, rules=rules)
        tally.add(verdict, _judge(guest, data, verdict, target), data)
    return tally


def _judge(guest: Guest, data: bytearray, verdict: Verdict, target: Target) -> str:
    before = guest.get()
    error = guest.set(data)
    after = guest.get()
    if error or not verdict.accepted:
        if not error or errno.errorcode[error] != verdict.answer:
            return f"KVM answers {error}, not {verdict.answer}"
        return "" if after == before else "a refused state changed the vCPU"
    visible = target.guest_xcr0 | 3
    if mxcsr_of(after) != verdict.reported_mxcsr:
        return f"MXCSR reads back {mxcsr_of(after):#x}, not {verdict.reported_mxcsr:#x}"
    if int.from_bytes(after[512:520], "little") & ~PKRU != verdict.loaded & visible & ~PKRU:
        return "XSTATE_BV reads back as if something else were loaded"
    return disagreement(data, verdict, target, after, pattern=before, visible=visible)


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
    assert guest.set(data) == 0
    short = data[: target.standard.size - 8]
    assert "XS002" in {f.id for f in predict(short, Consumer.KVM, target).refusals}
