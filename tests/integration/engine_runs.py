"""What tests of engines share: which programs can run here, running them, and judging how they ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from fpstate.arch import Cpu
from fpstate.arch.component import USER_DYNAMIC
from fpstate.engine.native import NativeEngine, NativeVcpu
from fpstate.program import BUILTIN, Builtin
from fpstate.vso.scheduler import RunReport, Scheduler
from fpstate.vso.vcpu import ExitKind

QUANTUM = 100_000


def cpu_without_xsavec() -> Cpu:
    """This processor as if it had neither XSAVEC nor XSAVES."""
    host = Cpu.host()
    return replace(host, features=host.features - {"XSAVEC", "XSAVES", "XGETBV1"}, xss=0)


def runnable(engine: NativeEngine) -> list[Builtin]:
    """The built-in programs whose components the engine's vCPUs may use and whose instructions this machine has."""
    usable = engine.offered(engine.manager.permissions.user_mask(engine.kind))
    cpu = Cpu.host()
    flags = {"avx512f": "AVX512F", "avx512bw": "AVX512BW", "avx": "AVX"}
    return [
        builtin
        for builtin in BUILTIN.values()
        if not builtin.required & ~usable
        and all(cpu.has(flags[flag]) for flag in builtin.cpu_flags if flag in flags)
    ]


UNASKED = [name for name, builtin in BUILTIN.items() if not builtin.required & USER_DYNAMIC]
"""Programs that need no permission. Those that do run in processes of their own (test_tiles.py): permission stays."""


def run_all(
    engine: NativeEngine, vcpus: Iterable[NativeVcpu], *, processors: int = 1, quantum: int = QUANTUM
) -> RunReport:
    """Run to the end and return the report."""
    return Scheduler(engine, quantum_ns=quantum, processors=processors).run(vcpus)


def turn(engine: NativeEngine, vcpus: Sequence[NativeVcpu], slices: int) -> None:
    """Run some slices, and take out who has not ended."""
    queue = engine.queue()
    for vcpu in vcpus:
        queue.add(vcpu)
    queue.run_slices(QUANTUM, slices)
    for vcpu in vcpus:
        if vcpu.exit is None:
            queue.remove(vcpu)


def turn_into_the_loop(engine: NativeEngine, vcpus: Sequence[NativeVcpu], slices: int) -> None:
    """Run canaries for some slices, and until each has loaded its pattern: a slice may pass without a step."""
    turn(engine, vcpus, slices)
    for vcpu in vcpus:
        while not vcpu.core.registers[15]:  # the last register that they load
            turn(engine, [vcpu], 1)


def check(vcpu: NativeVcpu, seed: int, argument: int | None = None) -> str | None:
    """Say what is wrong with a built-in program's end, or None."""
    assert vcpu.exit is not None
    if vcpu.exit.kind is not ExitKind.FINISHED:
        return str(vcpu.exit)
    assert vcpu.block is not None
    return BUILTIN[vcpu.name].check(vcpu.block.result, seed, argument, vcpu.block.features)
