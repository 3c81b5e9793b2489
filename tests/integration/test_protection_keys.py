"""PKRU, which every engine switches apart from VSOs: the same at the start, kept, and nobody else's."""

from __future__ import annotations

import pytest
from engine_runs import check, run_all, turn_into_the_loop
from kvm_runs import turn_into_the_loop as turn_guests_into_the_loop

from fpstate.arch import Component, mask_of
from fpstate.arch.component import LEGACY
from fpstate.engine.kvm.exchange import Exchange
from fpstate.engine.kvm.trap import PAGE_FAULT, Stop, Why, signal_of
from fpstate.engine.leak import audit
from fpstate.engine.native import NativeEngine, NativeQueue
from fpstate.program import BUILTIN, Program, canary_pattern, parse_probe
from fpstate.program.block import ENTRY_PKRU
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import ExitKind

CANARY, PROBE = BUILTIN["canary"], BUILTIN["probe"]
PKRU = mask_of(Component.PKRU)
ARGUMENT = 60_000
WRITES = bytes.fromhex("31c9 31d2 b830333333 0f01ef b800000000 e7f5")
"""ECX and EDX 0; WRPKRU of 33333330H; out."""


@pytest.fixture
def keys(native) -> None:
    """Protection keys, which programs can use where the kernel turned them on."""
    if not native.features()["pkru"]:
        pytest.skip("protection keys (CPUID.(07H,0):ECX[4], OSPKE)")


@pytest.fixture
def kvm_keys(kvm):
    """kvm, where guests can use protection keys."""
    if not kvm().offered(PKRU):
        pytest.skip("protection keys in guests (CPUID.(07H,0):ECX[3] of KVM_GET_SUPPORTED_CPUID, or RDPKRU)")
    return kvm


def start(engine, count=6):
    return [engine.vcpu(CANARY.load(), seed=seed, argument=ARGUMENT) for seed in range(count)]


def probed(engine) -> dict[str, int]:
    vcpu = engine.vcpu(PROBE.load())
    run_all(engine, [vcpu])
    assert PROBE.check(vcpu.block.result, 0, 0, vcpu.block.features) is None
    return parse_probe(vcpu.block.result, vcpu.block.features)


def test_a_program_finds_linux_s_default_natively(keys, engine):
    assert probed(engine)["pkru"] == ENTRY_PKRU == 0x55555554


def test_a_program_finds_the_same_in_a_guest(kvm_keys):
    assert probed(kvm_keys())["pkru"] == ENTRY_PKRU


def test_a_changed_pkru_is_named(keys, engine):
    vcpus = start(engine, 3)
    turn_into_the_loop(engine, vcpus, 9)
    vcpus[1].core.pkru ^= 0x80000000
    run_all(engine, vcpus)
    assert (check(vcpus[0], 0, ARGUMENT), check(vcpus[2], 2, ARGUMENT)) == (None, None)
    expected = canary_pattern(1)["pkru"]
    assert "the first in pkru at iteration" in check(vcpus[1], 1, ARGUMENT)
    assert f"holds {expected ^ 0x80000000:#x} instead of {expected:#x}" in check(vcpus[1], 1, ARGUMENT)


class HandsPkruOn(NativeQueue):
    """Lets each vCPU that is entered have the PKRU of the one that ended or grew last."""

    def _decide(self, vcpu):
        goes_on = super()._decide(vcpu)
        for other in self._members.values():
            other.core.pkru = vcpu.core.pkru
        return goes_on


def test_a_pkru_that_is_handed_on_is_caught_by_the_audit(keys, native):
    class Engine(NativeEngine):
        def queue(self):
            return HandsPkruOn(self)

    report = audit(Engine(Manager(), timeout=10), contexts=16)
    assert any("pkru" in problem for problem in report.damaged) or any(
        leak.place.startswith("pkru") for leak in report.leaks
    )


def test_nothing_of_pkru_leaks(keys, native, each_core):
    engine = NativeEngine(Manager(), timeout=10)
    assert engine.offered(engine.manager.permissions.user_mask(engine.kind)) & PKRU
    report = audit(engine, contexts=16)
    assert (report.leaks, report.damaged) == ([], [])


def test_nothing_of_pkru_leaks_between_guests(kvm_keys):
    report = audit(kvm_keys(), contexts=16)
    assert (report.leaks, report.damaged) == ([], [])


class ForgetsPkru(Exchange):
    """Lets every guest have Linux's default again."""

    def put_pkru(self, image, value):
        super().put_pkru(image, ENTRY_PKRU)


class KeepsPkru(Exchange):
    """Lets every guest have the PKRU of the first that ran."""

    first = None

    def put_pkru(self, image, value):
        super().put_pkru(image, value if self.first is None else self.first)

    def pkru(self, image):
        found = super().pkru(image)
        self.first = self.first or found
        return found


@pytest.mark.parametrize("kind", [ForgetsPkru, KeepsPkru])
def test_a_load_that_gives_a_guest_another_s_pkru_is_caught(kvm_keys, kind):
    from fpstate.engine.kvm.engine import KvmEngine

    class Engine(KvmEngine):
        def _exchange(self, mask, size):
            return kind(self.manager, mask, size)

    engine = kvm_keys(None, Engine, vcpus=1)
    guests = start(engine, 3)
    turn_guests_into_the_loop(engine, guests, 12)
    run_all(engine, guests)
    assert any(
        "the first in pkru at" in (check(guest, seed, ARGUMENT) or "") for seed, guest in enumerate(guests)
    )


@pytest.mark.parametrize("permitted", [None, LEGACY])
def test_a_program_that_writes_pkru_is_denied_by_neither_engine(keys, kvm_keys, engine, permitted):
    """PKRU is in no VSO, so that no permission is needed; it holds no buffer either."""
    for each in (engine, kvm_keys()):
        vcpu = each.vcpu(Program.from_bytes(WRITES, format="flat"), permitted=permitted)
        run_all(each, [vcpu])
        assert vcpu.exit.kind is ExitKind.FINISHED
        assert each.manager.statistics().bytes_peak == 0


# Without protection keys too


@pytest.mark.parametrize(
    ("error_code", "si_code"),
    [(0x05, 2), (0x25, 4), (0x27, 4), (0x04, 1)],
    ids=["rights", "key", "write", "absent"],
)
def test_a_closed_key_is_told_from_other_page_faults(error_code, si_code):
    stop = Stop(Why.FAULT, vector=PAGE_FAULT, error_code=error_code, address=0x1000)
    assert signal_of(stop, 0, 0) == ("SIGSEGV", si_code)


def test_each_native_vcpu_starts_with_the_default(native):
    assert NativeEngine(Manager()).vcpu(CANARY.load()).core.pkru == ENTRY_PKRU


def test_each_guest_starts_with_the_default(kvm):
    assert kvm().vcpu(CANARY.load()).pkru == ENTRY_PKRU
