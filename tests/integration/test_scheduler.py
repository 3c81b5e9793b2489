"""The scheduler shares out processors fairly, calls back, and passes on errors."""

import os
import threading

import pytest

from fpstate.engine.native import NativeEngine
from fpstate.errors import FpStateError
from fpstate.program import BUILTIN
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import RunReport, Scheduler
from fpstate.vso.vcpu import ExitKind


@pytest.fixture
def plain_engine(native) -> NativeEngine:
    return NativeEngine(Manager())


def spins(engine: NativeEngine, count: int, argument: int = 100_000):
    return [engine.vcpu(BUILTIN["spin"].load(), seed=seed, argument=argument) for seed in range(count)]


@pytest.fixture(params=[1, 2])
def processors(request: pytest.FixtureRequest) -> int:
    if request.param > len(os.sched_getaffinity(0)):
        pytest.skip(f"{request.param} processors")
    return request.param


@pytest.mark.parametrize("processors", [0, -1, 4096])
def test_more_processors_than_there_are_cannot_be_asked_for(plain_engine, processors: int) -> None:
    with pytest.raises(FpStateError, match="processors asked for") as error:
        Scheduler(plain_engine, processors=processors)
    assert "use 1 to" in error.value.help


def test_nothing_to_run_is_done_at_once(plain_engine, processors: int) -> None:
    assert Scheduler(plain_engine, processors=processors).run([]) == RunReport()


def test_each_end_is_told_once(plain_engine, processors: int) -> None:
    vcpus, told, lock = spins(plain_engine, 30), [], threading.Lock()

    def on_exit(vcpu) -> None:
        with lock:
            told.append(vcpu)

    report = Scheduler(plain_engine, processors=processors).run(vcpus, on_exit=on_exit)
    assert len(told) == len(vcpus)
    assert set(told) == set(vcpus)
    assert report.switches == sum(vcpu.slices for vcpu in vcpus)
    assert report.preemptions == sum(vcpu.preemptions for vcpu in vcpus)


def test_a_run_stops_when_it_is_told_to_and_can_be_gone_on_with(plain_engine, processors: int) -> None:
    vcpus, pauses = spins(plain_engine, 6, 20_000_000), []
    scheduler = Scheduler(plain_engine, processors=processors)
    scheduler.run(vcpus, on_pause=lambda: pauses.append(1), until=lambda: len(pauses) >= 2)
    assert any(vcpu.exit is None for vcpu in vcpus)
    scheduler.run(vcpu for vcpu in vcpus if vcpu.exit is None)
    assert [vcpu.exit.kind for vcpu in vcpus] == [ExitKind.FINISHED] * 6


def test_time_is_shared_out_fairly(plain_engine) -> None:
    vcpus, pauses = spins(plain_engine, 5, 10**11), []
    Scheduler(plain_engine, quantum_ns=200_000).run(
        vcpus, on_pause=lambda: pauses.append(1), until=lambda: len(pauses) >= 8
    )
    slices = [vcpu.slices for vcpu in vcpus]
    assert max(slices) - min(slices) <= 1
    assert min(slices) > 20
    for vcpu in vcpus:
        plain_engine.manager.free(vcpu.vso)


@pytest.mark.parametrize("which", ["on_exit", "on_pause", "until"])
def test_an_error_of_a_callback_ends_the_run_and_is_raised(plain_engine, processors: int, which: str) -> None:
    vcpus = [*spins(plain_engine, 4, 1000), *spins(plain_engine, 4, 6_000_000)]

    def fail(*_arguments) -> bool:
        raise LookupError(which)

    with pytest.raises(LookupError, match=which):
        Scheduler(plain_engine, processors=processors).run(vcpus, **{which: fail})
    Scheduler(plain_engine).run(vcpu for vcpu in vcpus if vcpu.exit is None)
    assert all(vcpu.exit for vcpu in vcpus)
    assert threading.active_count() < 10


def test_the_thread_s_affinity_comes_back(plain_engine, processors: int) -> None:
    before = os.sched_getaffinity(0)
    Scheduler(plain_engine, processors=processors).run(spins(plain_engine, 4))
    assert os.sched_getaffinity(0) == before


def test_reports_add_up() -> None:
    assert RunReport(1, 2, 3, (4.0,)) + RunReport(10, 20, 30, (5.0,)) == RunReport(11, 22, 33, (4.0, 5.0))


def test_switch_times_are_sampled_in_nanoseconds(plain_engine) -> None:
    canary = BUILTIN["canary"]
    each = (1).to_bytes(8, "little")
    report = Scheduler(plain_engine).run(
        [plain_engine.vcpu(canary.load(), seed=seed, argument=1000, input=each) for seed in range(4)]
    )
    assert report.yields > 1000
    times = sorted(report.switch_ns)
    assert 10 < times[len(times) // 2] < 100_000


def test_a_vcpu_cannot_be_in_two_runs(plain_engine) -> None:
    vcpus = spins(plain_engine, 1)
    with pytest.raises(FpStateError, match="already"):
        Scheduler(plain_engine).run([vcpus[0], vcpus[0]])
