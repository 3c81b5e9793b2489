"""Contexts hold what they use: nothing, the legacy region, or more, and less again; and no more than permitted."""

import random

import pytest
from engine_runs import QUANTUM, check, run_all

from fpstate.arch import Component
from fpstate.arch.component import LEGACY
from fpstate.engine.native import NativeEngine
from fpstate.errors import PermissionDenied, PoolExhausted
from fpstate.program import BUILTIN, FAULTS
from fpstate.vso.manager import Manager
from fpstate.vso.pool import Pool
from fpstate.vso.scheduler import Scheduler
from fpstate.vso.vcpu import ExitKind

AVX_ONCE = """
    vpcmpeqd ymm3, ymm3, ymm3
    mov ecx, 4000000
1:  dec ecx
    jnz 1b
    {clean}
2:  mov eax, 1
    call gs:[0]
    jmp 2b
"""


def slices(engine: NativeEngine, vcpus, count: int) -> None:
    queue = engine.queue()
    for vcpu in vcpus:
        queue.add(vcpu)
    for _ in range(count):
        queue.run(QUANTUM, 1_000_000_000, len(vcpus))
    for vcpu in vcpus:
        queue.remove(vcpu)


def test_contexts_that_use_no_floating_point_hold_nothing_all_the_time(engine: NativeEngine) -> None:
    spin = BUILTIN["spin"]
    vcpus = [engine.vcpu(spin.load(), seed=seed, argument=spin.default_argument) for seed in range(200)]
    Scheduler(engine, quantum_ns=QUANTUM).run(vcpus)
    assert [check(vcpu, seed) for seed, vcpu in enumerate(vcpus)] == [None] * 200
    statistics = engine.manager.statistics()
    assert (statistics.growths, statistics.bytes_peak) == (0, 0)
    assert statistics.saves > 200


def test_sse_contexts_hold_the_legacy_region_and_no_more(engine: NativeEngine) -> None:
    vcpus = [engine.vcpu(BUILTIN["sse_nbody"].load(), seed=seed, argument=100_000) for seed in range(20)]
    slices(engine, vcpus, 3)
    assert [vcpu.exit for vcpu in vcpus] == [None] * 20
    assert {vcpu.vso.size for vcpu in vcpus} == {576}
    assert {vcpu.vso.xfeatures for vcpu in vcpus} == {LEGACY}
    assert engine.manager.statistics().bytes_held == 20 * 576
    assert engine.manager.statistics().bytes_peak == 20 * 576


def test_avx_contexts_hold_their_upper_halves_too(engine: NativeEngine, avx: int) -> None:
    mandelbrot = BUILTIN["avx_mandelbrot"]
    vcpus = [engine.vcpu(mandelbrot.load(), seed=seed, argument=600) for seed in range(10)]
    slices(engine, vcpus, 3)
    size = engine.manager.config.kernel_size(LEGACY | avx)
    assert {vcpu.vso.size for vcpu in vcpus} == {size} == {832}
    run_all(engine, vcpus)
    assert [check(vcpu, seed, 600) for seed, vcpu in enumerate(vcpus)] == [None] * 10
    assert engine.manager.statistics().bytes_held == 0


@pytest.mark.parametrize("clean", ["vzeroupper; pxor xmm3, xmm3", "vzeroall"])
def test_a_context_that_stops_using_avx_is_parked(manager: Manager, avx: int, assemble, clean: str) -> None:
    manager.shrink_after = 8
    engine = NativeEngine(manager)
    vcpu = engine.vcpu(assemble(AVX_ONCE.format(clean=clean), features=LEGACY | avx))
    slices(engine, [vcpu], 2)
    before = vcpu.vso.size
    assert before == manager.config.kernel_size(LEGACY | avx)
    for _ in range(100):
        slices(engine, [vcpu], 10)
        if not vcpu.vso.xfeatures & avx:
            break
    assert vcpu.vso.size <= 576
    assert manager.statistics().parks >= 1
    assert not any(any(memory) for memory in manager.pool.free_memory())


def test_a_context_that_never_shrinks_keeps_its_buffer(manager: Manager, avx: int, assemble) -> None:
    """The negative control: without the policy the program above keeps 832 bytes."""
    manager.shrink_after = 0
    engine = NativeEngine(manager)
    vcpu = engine.vcpu(assemble(AVX_ONCE.format(clean="vzeroall"), features=LEGACY | avx))
    slices(engine, [vcpu], 100)
    assert vcpu.vso.size == manager.config.kernel_size(LEGACY | avx)
    assert vcpu.core.in_use & avx == 0
    assert manager.statistics().parks == 0


def test_a_context_that_uses_what_it_may_not_is_denied_and_the_others_go_on(
    engine: NativeEngine, avx: int
) -> None:
    mandelbrot, canary = BUILTIN["avx_mandelbrot"], BUILTIN["canary"]
    good = [engine.vcpu(canary.load(), seed=seed, argument=2000) for seed in range(10)]
    bad = [engine.vcpu(mandelbrot.load(), argument=2000, permitted=LEGACY) for _ in range(5)]
    allowed = engine.vcpu(mandelbrot.load(), seed=3, argument=200)
    run_all(engine, [*good[:5], *bad, allowed, *good[5:]])
    for vcpu in bad:
        assert vcpu.exit.kind is ExitKind.DENIED
        assert vcpu.exit.code == Component.AVX
        assert isinstance(vcpu.exit.error, PermissionDenied)
        assert vcpu.exit.error.component == Component.AVX
        assert (vcpu.vso.alive, vcpu.vso.size) == (False, 0)
    assert [check(vcpu, seed, 2000) for seed, vcpu in enumerate(good)] == [None] * 10
    assert check(allowed, 3, 200) is None
    assert engine.manager.statistics().denials == len(bad)
    assert not any(any(memory) for memory in engine.manager.pool.free_memory())


def test_what_a_denied_context_held_is_nowhere_afterwards(engine: NativeEngine, avx: int, assemble) -> None:
    secret = 0x5EC2E7_5EC2E7_5E
    program = assemble(
        f"movabs rax, {secret}; vmovq xmm7, rax; vpbroadcastq ymm7, xmm7; 1: jmp 1b", features=LEGACY
    )
    probe = BUILTIN["probe"]
    denied = engine.vcpu(program, permitted=LEGACY)
    fresh = [engine.vcpu(probe.load()) for _ in range(3)]
    run_all(engine, [denied, *fresh])
    assert denied.exit.kind is ExitKind.DENIED
    assert [check(vcpu, 0, 0) for vcpu in fresh] == [None] * 3
    spill = bytearray(4096)
    from fpstate import _core

    _core.unspill(spill, [(0, 0, 832)])
    assert secret.to_bytes(8, "little") not in bytes(spill)


def test_programs_are_told_what_they_may_use(engine: NativeEngine) -> None:
    canary = BUILTIN["canary"]
    vcpu = engine.vcpu(canary.load(), seed=1, argument=500, permitted=LEGACY)
    run_all(engine, [vcpu])
    assert vcpu.block.features == LEGACY
    assert check(vcpu, 1, 500) is None


class FailingPool(Pool):
    """A pool that fails to give what it is asked for when it is told to."""

    failure: Exception | None = None

    def take(self, size: int):
        if self.failure is not None:
            raise self.failure
        return super().take(size)


@pytest.mark.parametrize("failure", [PoolExhausted("no memory for a buffer"), MemoryError()])
def test_a_context_that_cannot_grow_ends_alone(native, failure: Exception) -> None:
    pool = FailingPool()
    engine = NativeEngine(Manager(pool=pool), timeout=5)
    idle = [engine.vcpu(BUILTIN["spin"].load(), seed=seed, argument=2_000_000) for seed in range(3)]
    nbody = engine.vcpu(BUILTIN["sse_nbody"].load(), argument=2000)
    slices(engine, [nbody, *idle], 1)
    pool.failure = failure
    starved = engine.vcpu(BUILTIN["x87_pi"].load(), argument=20_000)
    run_all(engine, [starved, nbody, *idle])
    assert starved.exit.kind is ExitKind.REFUSED
    assert isinstance(starved.exit.error, PoolExhausted)
    assert check(nbody, 0, 2000) is None
    assert [check(vcpu, seed, 2_000_000) for seed, vcpu in enumerate(idle)] == [None] * 3
    assert engine.manager.statistics().contexts == 0


def test_growing_and_parking_at_random_changes_no_result(engine: NativeEngine) -> None:
    source, canary = random.Random(2), BUILTIN["canary"]
    vcpus = [engine.vcpu(canary.load(), seed=seed, argument=40_000) for seed in range(8)]
    for _ in range(20):
        living = [vcpu for vcpu in vcpus if vcpu.exit is None]
        slices(engine, living, 1)
        for vcpu in source.sample(vcpus, 4):
            if vcpu.exit is None:
                image = vcpu.vso.image()
                engine.manager.wipe(vcpu.vso)
                engine.manager.load(vcpu.vso, image)
                vcpu.attach()
    run_all(engine, [vcpu for vcpu in vcpus if vcpu.exit is None])
    assert [check(vcpu, seed, 40_000) for seed, vcpu in enumerate(vcpus)] == [None] * 8


def test_a_fault_is_told_with_the_state_that_led_to_it(engine: NativeEngine) -> None:
    """A guest that faults with state in use grows its VSO first, and then ends."""
    vcpu = engine.vcpu(FAULTS["sse_exception"].load())
    run_all(engine, [vcpu])
    assert vcpu.exit.kind is ExitKind.FAULT
    assert engine.manager.statistics().growths == 1


def test_idle_memory_is_a_small_part_of_static_blobs(engine: NativeEngine) -> None:
    vcpus = [engine.vcpu(BUILTIN["spin"].load(), argument=10**9) for _ in range(95)]
    vcpus += [engine.vcpu(BUILTIN["sse_nbody"].load(), argument=10**6) for _ in range(5)]
    slices(engine, vcpus, 2)
    statistics = engine.manager.statistics()
    assert statistics.static_bytes == 100 * engine.manager.config.kernel_default.size
    assert statistics.bytes_held == 5 * 576
    for vcpu in vcpus:
        engine.manager.free(vcpu.vso)
