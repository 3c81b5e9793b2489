"""Guests of the KVM engine one after the other on one vCPU: the second has its own MXCSR, not the first one's.

Where the kernel restores in the standard format, a state that states neither x87 nor SSE nor AVX leaves MXCSR as it
was (``xfeatures_mxcsr_quirk`` in ``arch/x86/kernel/fpu/xstate.c``; SDM Vol. 1, 13.8).
"""

from __future__ import annotations

import pytest

from fpstate.arch import Component, mask_of
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.errors import UnsupportedHere
from fpstate.image.consumer import Target
from fpstate.program import BUILTIN, parse_probe
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler

SSE = mask_of(Component.SSE)
TURNS = 20
QUANTUM = 200_000
MXCSR_INIT = 0x1F80


@pytest.fixture
def engine(native):
    try:
        return KvmEngine(Manager(), vcpus=1)
    except UnsupportedHere as error:
        pytest.skip(f"KVM: {error}")


def seen_by_fresh_guests(engine):
    """Stop a guest that sets each rounding mode at many points, and ask a new one for its MXCSR each time."""
    found = set()
    for seed in range(TURNS):
        changing = engine.vcpu(BUILTIN["rounding_sum"].load(), seed=seed, argument=1_000_000)
        queue = engine.queue()
        queue.add(changing)
        queue.run_slices(QUANTUM, 2 + seed % 7)
        queue.clear()
        probe = engine.vcpu(BUILTIN["probe"].load())
        Scheduler(engine, quantum_ns=50 * QUANTUM).run([probe])
        found.add(parse_probe(probe.block.result, probe.block.features)["mxcsr"])
    return found


def test_a_fresh_guest_has_the_initial_mxcsr(engine):
    assert seen_by_fresh_guests(engine) == {MXCSR_INIT}


def test_a_load_that_does_not_state_sse_would_leak_it(engine):
    """The control."""
    if Target.from_cpu(engine.manager.config.cpu).compacted_restore:
        pytest.skip("this kernel restores in the compacted format, which initialises MXCSR")
    engine.exchange.always &= ~SSE
    assert seen_by_fresh_guests(engine) != {MXCSR_INIT}
