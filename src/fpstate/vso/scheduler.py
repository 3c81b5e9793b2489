"""The Scheduler: it shares out processors among vCPUs, one host thread to a processor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fpstate.errors import FpStateError
from fpstate.vso.vcpu import Vcpu

V = TypeVar("V", bound=Vcpu)

BUDGET_NS = 20_000_000
"""How long a host thread runs guests before it looks up: signals, progress, an order to stop."""


class RunQueue(Protocol[V]):
    """The vCPUs that one host thread runs; made by an engine."""

    def __len__(self) -> int:
        """How many can run."""

    def add(self, vcpu: V) -> None:
        """Put a vCPU behind all others."""

    def run(self, quantum_ns: int, budget_ns: int) -> V | None:
        """Run until a vCPU ends, and return it; None when the budget is used up or none can run."""

    def clear(self) -> None:
        """Take all vCPUs out, as they are, so that another queue can run them."""

    def report(self) -> RunReport:
        """Return what was done so far."""


class Engine(Protocol[V]):
    """Where a state becomes registers."""

    name: str

    def queue(self) -> RunQueue[V]:
        """Return an empty queue for one host thread."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a queue, or several, did; ``switch_ns`` are samples of single switches."""

    switches: int = 0
    preemptions: int = 0
    yields: int = 0
    switch_ns: tuple[float, ...] = ()

    def __add__(self, other: RunReport) -> RunReport:
        return RunReport(
            self.switches + other.switches,
            self.preemptions + other.preemptions,
            self.yields + other.yields,
            self.switch_ns + other.switch_ns,
        )


class Scheduler(Generic[V]):
    """Runs vCPUs round robin on ``processors`` host threads, each pinned to a processor of its own.

    Raises FpStateError when there are fewer processors than asked for.
    """

    def __init__(self, engine: Engine[V], *, quantum_ns: int = 100_000, processors: int = 1) -> None:
        available = sorted(os.sched_getaffinity(0))
        if not 1 <= processors <= len(available):
            raise FpStateError(
                f"{processors} processors asked for, {len(available)} may be used",
                help=f"use 1 to {len(available)}",
            )
        self.engine = engine
        self.quantum_ns = quantum_ns
        self.processors = available[:processors]

    def run(
        self,
        vcpus: Iterable[V],
        *,
        on_exit: Callable[[V], None] = lambda vcpu: None,
        on_pause: Callable[[], None] = lambda: None,
        until: Callable[[], bool] = lambda: False,
    ) -> RunReport:
        """Run until every vCPU has ended, or ``until()`` says so; returns what was done.

        ``on_exit`` is told of each end, from the thread that ran it, ``on_pause`` is called now and then. An error
        or a KeyboardInterrupt stops all threads at their next pause, and is raised here.
        """
        members = list(vcpus)
        workers = [
            _Worker(self, processor, members[index :: len(self.processors)], on_exit, until)
            for index, processor in enumerate(self.processors)
        ]
        if len(workers) == 1:
            workers[0].work(on_pause)
        else:
            _run_threads(workers, on_pause)
        reports = [worker.queue.report() for worker in workers]
        return sum(reports[1:], reports[0])


class _Worker(Generic[V]):
    def __init__(
        self,
        scheduler: Scheduler[V],
        processor: int,
        members: Sequence[V],
        on_exit: Callable[[V], None],
        until: Callable[[], bool],
    ) -> None:
        self.queue = scheduler.engine.queue()
        self.quantum_ns = scheduler.quantum_ns
        self.processor = processor
        self.on_exit = on_exit
        self.until = until
        self.stop = threading.Event()
        self.done = threading.Event()
        self.error: BaseException | None = None
        for vcpu in members:
            self.queue.add(vcpu)

    def work(self, on_pause: Callable[[], None]) -> None:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.processor})
        try:
            while len(self.queue) and not self.stop.is_set() and not self.until():
                ended = self.queue.run(self.quantum_ns, BUDGET_NS)
                if ended is None:
                    on_pause()
                else:
                    self.on_exit(ended)
        finally:
            self.queue.clear()
            os.sched_setaffinity(0, before)

    def work_in_thread(self) -> None:
        try:
            self.work(lambda: None)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


def _run_threads(workers: Sequence[_Worker[V]], on_pause: Callable[[], None]) -> None:
    threads = [threading.Thread(target=worker.work_in_thread, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        # Not by Thread.join: interrupted, it takes a running thread for one that ended (Python 3.11).
        while not all(worker.done.is_set() for worker in workers):
            for worker in workers:
                worker.done.wait(0.05)
            on_pause()
            if any(worker.error for worker in workers):
                break
    finally:
        for worker in workers:
            worker.stop.set()
        for worker in workers:
            worker.done.wait()
        for thread in threads:
            thread.join()
    for worker in workers:
        if worker.error:
            raise worker.error
