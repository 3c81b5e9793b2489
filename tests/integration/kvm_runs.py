"""What tests of the KVM engine share."""

from __future__ import annotations

from collections.abc import Sequence

from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.guest import KvmGuest
from fpstate.program import BUILTIN, Builtin, Program
from fpstate.vso.scheduler import RunReport, Scheduler
from fpstate.vso.vcpu import ExitKind

QUANTUM = 100_000
LONG_NS = 100_000_000_000
"""A budget that is not used up, on however busy a machine."""


def run_all(
    engine: KvmEngine, guests: Sequence[KvmGuest], *, processors: int = 1, quantum: int = QUANTUM
) -> RunReport:
    """Run to the end and return the report."""
    return Scheduler(engine, quantum_ns=quantum, processors=processors).run(guests)


def run_one(engine: KvmEngine, program: Program, **options) -> KvmGuest:
    """Run one guest to its end."""
    guest = engine.vcpu(program, **options)
    run_all(engine, [guest])
    assert guest.exit is not None
    return guest


def turn(engine: KvmEngine, guests: Sequence[KvmGuest], slices: int) -> None:
    """Run some slices, and take out who has not ended."""
    queue = engine.queue()
    for guest in guests:
        queue.add(guest)
    queue.run_slices(QUANTUM, slices)
    queue.clear()


def turn_into_the_loop(engine: KvmEngine, guests: Sequence[KvmGuest], slices: int) -> None:
    """Run canaries for some slices, and until each has loaded its pattern: a slice may pass without a step."""
    turn(engine, guests, slices)
    for guest in guests:
        while not guest.context["r15"]:  # the last register that they load
            turn(engine, [guest], 1)


def runnable(engine: KvmEngine) -> list[Builtin]:
    """The built-in programs that this machine can run."""
    cpu = engine.manager.config.cpu
    return [builtin for builtin in BUILTIN.values() if not builtin.missing(cpu, engine.managed)]


def check(guest: KvmGuest, seed: int, argument: int | None = None) -> str | None:
    """Say what is wrong with a built-in program's end, or None."""
    assert guest.exit is not None
    if guest.exit.kind is not ExitKind.FINISHED or guest.block is None:
        return str(guest.exit)
    return BUILTIN[guest.name].check(guest.block.result, seed, argument, guest.block.features)
