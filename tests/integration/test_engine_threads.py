"""Several host threads run guests at once, beside Python that goes on, forks, and is interrupted."""

import itertools
import os
import signal
import threading
import time

import pytest
from engine_runs import QUANTUM, check, runnable

from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler
from fpstate.vso.vcpu import ExitKind

CANARY = BUILTIN["canary"]


def drain(engine: NativeEngine, vcpus) -> None:
    queue = engine.queue()
    for vcpu in vcpus:
        queue.add(vcpu)
    while len(queue):
        queue.run(QUANTUM, 10_000_000)


def test_threads_with_queues_of_their_own_do_not_disturb_each_other(engine: NativeEngine) -> None:
    programs = [builtin for builtin in runnable(engine) if builtin.default_argument]
    batches = []
    for number in range(4):
        mix = itertools.islice(itertools.cycle(programs), number, number + 10)
        batches.append(
            [engine.vcpu(each.load(), seed=number, argument=each.default_argument) for each in mix]
        )
    threads = [threading.Thread(target=drain, args=(engine, batch)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert not any(thread.is_alive() for thread in threads)
    for number, batch in enumerate(batches):
        assert [check(vcpu, number) for vcpu in batch] == [None] * len(batch)


def test_a_vcpu_moves_between_threads(engine: NativeEngine) -> None:
    vcpu = engine.vcpu(CANARY.load(), seed=5, argument=30_000)

    def some_slices() -> None:
        queue = engine.queue()
        queue.add(vcpu)
        queue.run_slices(QUANTUM, 5)
        if vcpu.exit is None:
            queue.remove(vcpu)

    for _ in range(4):
        thread = threading.Thread(target=some_slices)
        thread.start()
        thread.join()
    drain(engine, [vcpu] if vcpu.exit is None else [])
    assert check(vcpu, 5, 30_000) is None


def test_threads_that_end_leave_no_mapping_and_no_timer(native) -> None:
    def one_run() -> None:
        native.Queue(timing=False).run(QUANTUM, 0)

    def many(count: int) -> int:
        for _ in range(count):
            thread = threading.Thread(target=one_run)
            thread.start()
            thread.join()
        with open("/proc/self/maps") as maps:
            return len(maps.readlines())

    before = many(20)
    assert many(400) < before + 50


def test_other_python_threads_make_progress_while_a_guest_runs(engine: NativeEngine) -> None:
    spin = engine.vcpu(BUILTIN["spin"].load(), argument=10**12)
    queue, counted, stop = engine.queue(), itertools.count(), threading.Event()
    queue.add(spin)

    def count() -> None:
        while not stop.is_set():
            next(counted)

    thread = threading.Thread(target=count)
    thread.start()

    def progress(budget_ns: int) -> int:
        start = next(counted)
        assert queue.run(QUANTUM, budget_ns) is None
        return next(counted) - start

    try:  # on a busy machine it takes longer until that thread has its turn
        assert any(progress(budget) > 10_000 for budget in (300_000_000, 3_000_000_000, 30_000_000_000))
    finally:
        stop.set()
        thread.join()
    engine.manager.free(spin.vso)


FORKS = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
"""Python 3.12 and later warn of a fork beside other threads, which is what is tried here."""


@FORKS
def test_a_forked_child_runs_guests_and_so_does_its_parent(engine: NativeEngine) -> None:
    before = [engine.vcpu(CANARY.load(), seed=seed, argument=2000) for seed in range(4)]
    drain(engine, before[:2])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            fresh = engine.vcpu(CANARY.load(), seed=9, argument=2000)
            drain(engine, [*before[2:], fresh])
            ended = zip([*before[2:], fresh], (2, 3, 9), strict=True)
            problems = [check(vcpu, seed, 2000) for vcpu, seed in ended]
            status = 0 if problems == [None] * 3 else 2
        finally:
            os._exit(status)
    drain(engine, before[2:])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [check(vcpu, seed, 2000) for seed, vcpu in enumerate(before)] == [None] * 4


@FORKS
def test_a_child_forked_while_another_thread_runs_guests_can_run_its_own(native) -> None:
    engine = NativeEngine(Manager())
    busy = engine.vcpu(BUILTIN["spin"].load(), argument=10**12)
    queue, stop = engine.queue(), threading.Event()
    queue.add(busy)

    def work() -> None:
        while not stop.is_set():
            queue.run(QUANTUM, 20_000_000)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        time.sleep(0.05)
        for _ in range(5):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    signal.alarm(120)
                    fresh = engine.vcpu(CANARY.load(), seed=9, argument=500)
                    drain(engine, [fresh])
                    status = 0 if check(fresh, 9, 500) is None else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        thread.join()
    assert busy.exit is None


class Interrupts:
    """A handler of SIGINT that raises KeyboardInterrupt once each time it is armed, and lets all others pass.

    So no interrupt escapes the part of a test that is ready for it.
    """

    def __init__(self) -> None:
        self.armed = True
        self.seen = threading.Event()

    def __call__(self, number: int, frame: object) -> None:
        self.seen.set()
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


@pytest.fixture
def interrupts():
    handler = Interrupts()
    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


class Interruption(threading.Timer):
    """A SIGINT to this process after some time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds, self._send)
        self.used = 0.0

    def _send(self) -> None:
        self.used = time.process_time()
        os.kill(os.getpid(), signal.SIGINT)

    def processor_time_since(self) -> float:
        """Seconds that all threads together took since it was sent."""
        return time.process_time() - self.used


@pytest.mark.parametrize("processors", [1, 2])
def test_ctrl_c_ends_a_run_soon_and_everything_goes_on(
    manager: Manager, interrupts: Interrupts, processors: int
) -> None:
    if processors > len(os.sched_getaffinity(0)):
        pytest.skip(f"{processors} processors")
    engine = NativeEngine(manager)
    scheduler = Scheduler(engine, quantum_ns=QUANTUM, processors=processors)
    endless = [engine.vcpu(BUILTIN["spin"].load(), argument=10**12) for _ in range(4)]
    canaries = [engine.vcpu(CANARY.load(), seed=seed, argument=200_000) for seed in range(8)]
    interruption = Interruption(0.15)
    interruption.start()
    with pytest.raises(KeyboardInterrupt):
        scheduler.run([*endless, *canaries])
    assert interruption.used
    assert interruption.processor_time_since() < 2
    interruption.join()
    assert [vcpu.exit for vcpu in endless] == [None] * 4
    scheduler.run([vcpu for vcpu in canaries if vcpu.exit is None])
    assert [check(vcpu, seed, 200_000) for seed, vcpu in enumerate(canaries)] == [None] * 8


def test_no_vcpu_is_lost_to_an_interrupt_that_meets_a_decision(
    manager: Manager, interrupts: Interrupts
) -> None:
    """Many short contexts that grow and end: nearly every run comes back with a vCPU to decide about."""
    engine = NativeEngine(manager)
    vcpus = [engine.vcpu(CANARY.load(), seed=seed, argument=200) for seed in range(600)]
    stop = threading.Event()

    def interrupt() -> None:
        while not stop.wait(0.002):
            interrupts.seen.clear()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            interrupts.seen.wait(1)

    queue, thread, met = engine.queue(), threading.Thread(target=interrupt), 0
    for vcpu in vcpus:
        queue.add(vcpu)
    interrupts.armed = False
    thread.start()
    while len(queue) or met < 4:
        if not len(queue):  # they were done before the other thread had its turns
            more = [
                engine.vcpu(CANARY.load(), seed=seed, argument=200)
                for seed in range(len(vcpus), len(vcpus) + 600)
            ]
            vcpus += more
            for vcpu in more:
                queue.add(vcpu)
        try:
            interrupts.armed = True
            while len(queue):
                queue.run(60_000, 20_000_000)
            interrupts.armed = False
        except KeyboardInterrupt:
            met += 1
    stop.set()
    thread.join()
    lost = [vcpu for vcpu in vcpus if vcpu.exit is None]
    assert lost == []
    assert all(vcpu.exit.kind is ExitKind.FINISHED for vcpu in vcpus)
    assert [check(vcpu, seed, 200) for seed, vcpu in enumerate(vcpus)] == [None] * len(vcpus)
