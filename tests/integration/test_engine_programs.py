"""Programs give the right results however they are preempted, mixed and shared out."""

import itertools
import os

import pytest
from engine_runs import UNASKED, check, run_all, runnable

from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import RunReport

PROCESSORS = [1, 2]


@pytest.fixture(params=PROCESSORS, ids=["one processor", "two processors"])
def processors(request: pytest.FixtureRequest) -> int:
    if request.param > len(os.sched_getaffinity(0)):
        pytest.skip(f"{request.param} processors")
    return request.param


@pytest.mark.parametrize("name", UNASKED)
def test_every_program_is_right_under_preemption(engine: NativeEngine, name: str, processors: int) -> None:
    builtin = BUILTIN[name]
    if builtin not in runnable(engine):
        pytest.skip(f"{name} needs components {builtin.required:#x} and {', '.join(builtin.cpu_flags)}")
    argument = 4 * builtin.default_argument
    vcpus = [engine.vcpu(builtin.load(), seed=seed, argument=argument) for seed in range(8)]
    report = run_all(engine, vcpus, processors=processors)
    assert [check(vcpu, seed, argument) for seed, vcpu in enumerate(vcpus)] == [None] * len(vcpus)
    if name != "probe":
        assert report.preemptions > 8
        assert sum(vcpu.preemptions for vcpu in vcpus) == report.preemptions
    assert engine.manager.statistics().bytes_held == 0


def test_a_mix_on_several_queues_is_right(engine: NativeEngine, processors: int) -> None:
    programs = [builtin for builtin in runnable(engine) if builtin.default_argument]
    vcpus = [
        engine.vcpu(builtin.load(), seed=seed, argument=builtin.default_argument)
        for seed, builtin in zip(range(60), itertools.cycle(programs), strict=False)
    ]
    run_all(engine, vcpus, processors=processors, quantum=60_000)
    assert [check(vcpu, seed) for seed, vcpu in enumerate(vcpus)] == [None] * len(vcpus)


def test_canaries_that_yield_all_the_time_meet_ticks_in_the_trampoline(engine: NativeEngine) -> None:
    """At 50 us a good part of the ticks meets host code; none may tear a switch."""
    canary, count, argument = BUILTIN["canary"], 16, 6000
    every_iteration = (1).to_bytes(8, "little")
    vcpus = [
        engine.vcpu(canary.load(), seed=seed, argument=argument, input=every_iteration)
        for seed in range(count)
    ]
    queue = engine.queue()
    for vcpu in vcpus:
        queue.add(vcpu)
    while len(queue):
        queue.run(50_000, 20_000_000)
    assert [check(vcpu, seed, argument) for seed, vcpu in enumerate(vcpus)] == [None] * count
    assert (
        queue.core.yields
        == sum(vcpu.slices - vcpu.preemptions - 1 for vcpu in vcpus)
        >= count * argument // 2
    )
    assert queue.core.preemptions > 0
    assert queue.core.ticks_in_host > 0
    assert queue.core.switches == queue.core.preemptions + queue.core.yields + count
    assert queue.core.saves == queue.core.switches


@pytest.mark.soak
@pytest.mark.usefixtures("each_core")
@pytest.mark.parametrize("processors", PROCESSORS, indirect=True)
def test_a_thousand_canaries_survive_ten_thousand_preemptions(native, processors: int) -> None:
    manager = Manager()
    engine, canary = NativeEngine(manager, timeout=60), BUILTIN["canary"]
    total, seeds = RunReport(), itertools.count()
    while total.preemptions < 5_500:
        vcpus = {
            seed: engine.vcpu(canary.load(), seed=seed, argument=canary.default_argument)
            for seed in itertools.islice(seeds, 1000)
        }
        total += run_all(engine, vcpus.values(), processors=processors)
        wrong = {seed: problem for seed, vcpu in vcpus.items() if (problem := check(vcpu, seed))}
        assert wrong == {}
    statistics = manager.statistics()
    assert (statistics.contexts, statistics.bytes_held) == (0, 0)
    assert statistics.restores == total.switches
    assert not any(any(memory) for memory in manager.pool.free_memory())
