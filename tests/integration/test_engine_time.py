"""A limit counts the time in which a guest's host thread ran, whatever else the processor does meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from engine_runs import QUANTUM

from fpstate.engine.native import NativeEngine, NativeVcpu
from fpstate.program import FAULTS
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import ExitKind

LIMIT = 0.1
BUSY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); print(flush=True)\nwhile True: pass"


@pytest.fixture
def shared_processor() -> Iterator[None]:
    """Pin this thread to a processor on which another process is busy."""
    before = os.sched_getaffinity(0)
    processor = min(before)
    busy = subprocess.Popen([sys.executable, "-c", BUSY, str(processor)], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        os.sched_setaffinity(0, {processor})
        yield
    finally:
        os.sched_setaffinity(0, before)
        busy.kill()
        busy.wait()
        busy.stdout.close()


def run_out(engine: NativeEngine, name: str) -> tuple[NativeVcpu, float]:
    """Run a guest until it ends, and return it with the processor time that this took, in seconds."""
    vcpu, queue = engine.vcpu(FAULTS[name].load()), engine.queue()
    queue.add(vcpu)
    start = time.thread_time()
    while queue.run(QUANTUM, 20_000_000) is None:
        pass
    return vcpu, time.thread_time() - start


@pytest.mark.parametrize("name", ["endless_loop", "yield_for_ever"])
def test_a_guest_has_had_its_time_when_it_expires(manager: Manager, shared_processor, name: str) -> None:
    vcpu, took = run_out(NativeEngine(manager, timeout=LIMIT), name)
    assert vcpu.exit is not None
    assert vcpu.exit.kind is ExitKind.EXPIRED
    assert took >= LIMIT
    assert vcpu.core.ran > vcpu.core.cycle_limit
    assert vcpu.slices > 1


def test_time_from_entry_to_exit_would_end_it_earlier(manager: Manager, shared_processor) -> None:
    """The negative control: the other process had much of that time."""
    found = []
    for _ in range(60):
        vcpu, _ = run_out(NativeEngine(manager, timeout=LIMIT), "endless_loop")
        found.append(vcpu.core.cycles / (vcpu.core.ran + vcpu.core.cycle_limit / 16))
        if found[-1] > 1.01:
            return
    pytest.fail(f"a busy process on the same processor took no time from the guest: {found}")


def test_what_is_not_counted_is_a_small_part(native, manager: Manager) -> None:
    """A 16th of the limit, and some 10 ms at most."""
    for limit, least in ((0.016, 0.001), (1.0, (1 << 25) / native.tsc_hz())):
        engine = NativeEngine(manager, timeout=limit)
        vcpu, queue = engine.vcpu(FAULTS["endless_loop"].load()), engine.queue()
        queue.add(vcpu)
        while not vcpu.core.ran:
            assert queue.run(QUANTUM, 20_000_000, 1) is None
        uncounted = (vcpu.core.cycles - vcpu.core.ran) / native.tsc_hz()
        assert vcpu.core.cycles / native.tsc_hz() > least
        assert vcpu.core.ran < vcpu.core.cycle_limit
        assert uncounted > 0
        queue.remove(vcpu)


def test_a_guest_without_a_limit_is_not_counted(native) -> None:
    engine = NativeEngine(Manager())
    vcpu, queue = engine.vcpu(FAULTS["endless_loop"].load()), engine.queue()
    queue.add(vcpu)
    queue.run_slices(QUANTUM, 5)
    assert (vcpu.core.cycle_limit, vcpu.core.ran) == (0, 0)
    assert vcpu.core.cycles > 0
