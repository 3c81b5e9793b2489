"""Guests on real KVM vCPUs: the same results as natively, however they are preempted and shared out."""

from __future__ import annotations

import itertools
import os

import pytest
from engine_runs import UNASKED
from kvm_runs import LONG_NS, check, run_all, run_one, runnable, turn, turn_into_the_loop

from fpstate.arch.component import LEGACY
from fpstate.engine.leak import audit
from fpstate.engine.native import NativeEngine
from fpstate.errors import PermissionDenied, PoolExhausted, ProgramError, UnsupportedHere, VsoError
from fpstate.program import BUILTIN
from fpstate.program.expected.probe import parse_probe
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.scheduler import Scheduler
from fpstate.vso.vcpu import ExitKind

CANARY = BUILTIN["canary"]
PROCESSORS = min(2, len(os.sched_getaffinity(0)))


def left(guest):
    """What a program left: its block, and for the probe, which tells its registers, those that hold no address."""
    if guest.name != "probe":
        return guest.block
    registers = parse_probe(guest.block.result, guest.block.features)
    return {name: value for name, value in registers.items() if name not in {"rsp", "rdi"}}


@pytest.mark.soak
def test_a_thousand_guests_share_two_kvm_vcpus_and_keep_every_register(kvm):
    """At least 10,000 preemptions; each canary compares every register with its own pattern, time and again."""
    engine = kvm(vcpus=2)
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=20_000) for seed in range(1000)]
    report = run_all(engine, guests, processors=PROCESSORS)
    assert [text for seed, guest in enumerate(guests) if (text := check(guest, seed, 20_000))] == []
    assert report.preemptions >= 10_000
    assert min(guest.preemptions for guest in guests) > 2
    assert engine.carriers.made <= 2
    assert (engine.manager.statistics().contexts, engine.manager.statistics().bytes_held) == (0, 0)
    assert not any(any(memory) for memory in engine.manager.pool.free_memory())


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
@pytest.mark.parametrize("name", UNASKED)
def test_every_program_leaves_the_bytes_that_it_leaves_natively(kvm, native, name, each):
    engine, builtin = kvm(each=each), BUILTIN[name]
    if builtin not in runnable(engine):
        pytest.skip(f"{name} needs {builtin.missing(engine.manager.config.cpu, engine.managed)}")
    argument = 2 * builtin.default_argument
    guests = [engine.vcpu(builtin.load(), seed=seed, argument=argument) for seed in range(6)]
    report = run_all(engine, guests, processors=PROCESSORS)
    natively = NativeEngine(Manager(), timeout=10)
    offered = engine.offered(engine.manager.permissions.user_mask(Kind.GUEST))
    twins = [
        natively.vcpu(builtin.load(), seed=seed, argument=argument, permitted=offered) for seed in range(6)
    ]
    Scheduler(natively).run(twins)
    for seed, (guest, twin) in enumerate(zip(guests, twins, strict=True)):
        assert check(guest, seed, argument) is None
        assert left(guest) == left(twin)
    assert sum(guest.preemptions for guest in guests) == report.preemptions
    if name != "probe":
        assert report.preemptions > 6


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_a_mix_on_two_host_threads_is_right(kvm, each):
    engine = kvm(each=each)
    programs = itertools.cycle(builtin for builtin in runnable(engine) if builtin.default_argument)
    mix = list(itertools.islice(programs, 60))
    guests = [
        engine.vcpu(builtin.load(), seed=seed, argument=builtin.default_argument)
        for seed, builtin in enumerate(mix)
    ]
    run_all(engine, guests, processors=PROCESSORS)
    assert [check(guest, seed) for seed, guest in enumerate(guests)] == [None] * len(guests)
    # One that ended early leaves its vCPU to one that begins late.
    assert PROCESSORS < engine.carriers.made <= 60 if each else engine.carriers.made == PROCESSORS


def test_kvm_vcpus_of_guests_that_ended_carry_others(kvm):
    engine = kvm(each=True)
    for turn_ in range(3):
        guests = [engine.vcpu(CANARY.load(), seed=seed + 10 * turn_, argument=3000) for seed in range(10)]
        run_all(engine, guests)
        assert [check(guest, seed + 10 * turn_, 3000) for seed, guest in enumerate(guests)] == [None] * 10
    assert engine.carriers.made == 10


@pytest.mark.parametrize("kvm_vcpus", [1, 3])
def test_fewer_or_more_kvm_vcpus_than_host_threads_change_no_result(kvm, kvm_vcpus):
    engine = kvm(vcpus=kvm_vcpus)
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=10_000) for seed in range(20)]
    run_all(engine, guests, processors=PROCESSORS)
    assert [check(guest, seed, 10_000) for seed, guest in enumerate(guests)] == [None] * 20
    assert 1 <= engine.carriers.made <= kvm_vcpus


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_nothing_leaks(kvm, each):
    engine = kvm(each=each)
    report = audit(engine)
    assert (report.leaks, report.damaged) == ([], [])
    assert report.canaries == 48
    assert report.searched_bytes > 48 * 576
    assert engine.manager.statistics().contexts == 0


def test_without_synced_registers_the_ioctls_do(kvm):
    """Kernels that lack KVM_CAP_SYNC_REGS."""
    engine = kvm(vcpus=1)
    carrier = engine.carriers.borrow(0)
    carrier.synced = False
    carrier.kvm.shared[288:296] = bytes(8)
    engine.carriers.give_back(carrier)
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=10_000) for seed in range(6)]
    report = run_all(engine, guests)
    assert [check(guest, seed, 10_000) for seed, guest in enumerate(guests)] == [None] * 6
    assert report.preemptions > 6


def test_a_guest_moves_between_queues_and_kvm_vcpus(kvm):
    engine = kvm(vcpus=2)
    guest = engine.vcpu(CANARY.load(), seed=9, argument=100_000)
    first, second = engine.carriers.borrow(0), engine.carriers.borrow(0)
    for carrier in (first, second, first):
        engine.carriers.give_back(carrier)
        turn(engine, [guest], 5)
        assert carrier.resident is guest
        assert engine.carriers.borrow(0) is carrier
    engine.carriers.give_back(first)
    run_all(engine, [guest])
    assert check(guest, 9, 100_000) is None


# State memory, by what a guest uses


def test_guests_that_use_no_floating_point_hold_nothing(kvm):
    engine = kvm()
    guests = [engine.vcpu(BUILTIN["spin"].load(), seed=seed, argument=100_000) for seed in range(20)]
    run_all(engine, guests)
    assert [check(guest, seed, 100_000) for seed, guest in enumerate(guests)] == [None] * 20
    statistics = engine.manager.statistics()
    assert (statistics.growths, statistics.bytes_peak) == (0, 0)
    assert statistics.saves == statistics.restores > 20


def test_guests_that_use_sse_hold_the_legacy_region(kvm):
    engine = kvm()
    guests = [engine.vcpu(BUILTIN["sse_nbody"].load(), seed=seed, argument=100_000) for seed in range(10)]
    turn(engine, guests, 30)
    assert {guest.vso.size for guest in guests} == {576}
    assert {guest.vso.kind for guest in guests} == {Kind.GUEST}
    assert engine.manager.statistics().bytes_held == 10 * 576


def test_a_guest_that_stops_using_avx_is_parked(kvm, avx, assemble):
    manager = Manager(shrink_after=4)
    engine = kvm(manager)
    program = assemble(
        "vpcmpeqd ymm3, ymm3, ymm3; mov ecx, 4000000; 1: dec ecx; jnz 1b; vzeroall; 2: jmp 2b",
        features=LEGACY | avx,
    )
    guest = engine.vcpu(program)
    turn(engine, [guest], 2)
    assert guest.vso.size == manager.config.kernel_size(LEGACY | avx)
    for _ in range(100):
        turn(engine, [guest], 8)
        if not guest.vso.size:
            break
    assert guest.vso.size == 0
    assert manager.statistics().parks == 1
    assert not any(any(memory) for memory in manager.pool.free_memory())


def test_a_guest_that_uses_what_it_may_not_is_denied_and_the_others_go_on(kvm, avx):
    engine = kvm()
    good = [engine.vcpu(CANARY.load(), seed=seed, argument=4000) for seed in range(6)]
    bad = [engine.vcpu(BUILTIN["avx_mandelbrot"].load(), argument=2000, permitted=LEGACY) for _ in range(3)]
    run_all(engine, [*good[:3], *bad, *good[3:]])
    for guest in bad:
        assert (guest.exit.kind, guest.exit.code) == (ExitKind.DENIED, 2)
        assert isinstance(guest.exit.error, PermissionDenied)
        assert (guest.vso.alive, guest.vso.size, guest.space) == (False, 0, None)
    assert [check(guest, seed, 4000) for seed, guest in enumerate(good)] == [None] * 6
    assert engine.manager.statistics().denials == 3
    assert not any(any(memory) for memory in engine.manager.pool.free_memory())


def test_programs_are_told_what_they_may_use(kvm):
    guest = run_one(kvm(), CANARY.load(), seed=1, argument=500, permitted=LEGACY)
    assert guest.block.features == LEGACY
    assert check(guest, 1, 500) is None


def test_a_vso_that_was_changed_from_outside_is_loaded_again(kvm):
    for each in (False, True):
        engine = kvm(each=each)
        guests = [engine.vcpu(CANARY.load(), seed=seed, argument=100_000) for seed in range(2)]
        turn_into_the_loop(engine, guests, 8)
        engine.manager.load(guests[1].vso, guests[0].vso.image())
        guests[1].attach()
        run_all(engine, guests)
        assert check(guests[0], 0, 100_000) is None
        assert "mismatches, the first in" in check(guests[1], 1, 100_000)


# What it refuses


def test_a_program_that_does_not_fit_leaves_nothing_behind(kvm):
    engine = kvm()
    with pytest.raises(ProgramError):
        engine.vcpu(CANARY.load(), memory_size=4096)
    with pytest.raises(ProgramError, match="at most 1073741824"):
        engine.vcpu(CANARY.load(), memory_size=2 << 30)
    assert engine.manager.statistics().contexts == 0


def test_data_that_does_not_fit_leaves_no_memory_behind(kvm):
    engine = kvm()
    (chunk,) = engine.arena._chunks
    before = set(chunk.living)
    with pytest.raises(ProgramError, match="do not fit"):
        engine.vcpu(CANARY.load(), input=bytes(1 << 20))
    assert chunk.living == before


def test_a_guest_with_much_memory_has_all_of_it(kvm, assemble):
    program = assemble(
        """
        mov rcx, rdi
        sub rcx, 0x2000000
    1:  mov [rcx], rcx
        add rcx, 4096
        cmp rcx, rdi
        jb 1b
        mov eax, 0
        call gs:[0]
        """
    )
    assert run_one(kvm(), program, memory_size=40 << 20).exit.kind is ExitKind.FINISHED
    assert run_one(kvm(), program, memory_size=16 << 20).exit.signal == "SIGSEGV"


def test_more_guests_than_kvm_vcpus_are_refused_where_each_has_its_own(kvm):
    engine = kvm(each=True)
    engine.carriers.limit = 2
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=10_000) for seed in range(3)]
    run_all(engine, guests)
    assert [guest.exit.kind for guest in guests] == [ExitKind.FINISHED, ExitKind.FINISHED, ExitKind.REFUSED]
    assert isinstance(guests[2].exit.error, PoolExhausted)
    assert "at most 2" in str(guests[2].exit)


def test_a_manager_for_another_processor_is_unsupported(kvm):
    from fpstate.arch import Cpu

    kvm()
    other = Cpu.catalog("sapphire-rapids" if Cpu.host().vendor == "AuthenticAMD" else "zen4")
    with pytest.raises(UnsupportedHere, match="layout"):
        kvm(Manager(other))


def test_queues_keep_their_rules(kvm):
    engine = kvm()
    guest = engine.vcpu(BUILTIN["spin"].load(), argument=10)
    first, second = engine.queue(), engine.queue()
    first.add(guest)
    with pytest.raises(VsoError, match="in a queue already"):
        second.add(guest)
    with pytest.raises(VsoError, match="not in this queue"):
        second.remove(guest)
    assert first.run(100_000, LONG_NS) is guest
    with pytest.raises(VsoError, match="has ended"):
        first.add(guest)
