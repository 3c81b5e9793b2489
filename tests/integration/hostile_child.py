"""Runs guests of the table beside canaries, and prints how each ended.

hostile_child.py PROGRAM ENGINE COUNT PROCESSORS ROW...

A process of its own: a guest may end it, or keep it for ever, and that is for the caller to see. Without ROWs it is
every row that this machine can run; COUNT guests of them in turn, 0 for each once. FPSTATE_STANDARD=1: as on a
processor without XSAVEC.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_runs import cpu_without_xsavec
from hostile_guests import EXPIRED, KVM, LOW_PAGE, NATIVE, ROWS, Row, rows

from fpstate import Cpu, _core, audit
from fpstate.arch import Component, mask_of
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN, Program
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler
from fpstate.vso.vcpu import Exit, ExitKind

TIMEOUT = 0.01
"""Seconds of processor time for guests that are to use it up."""
AMPLE = 60.0
"""And for all others, on however slow a machine."""
QUANTUM_NS = {NATIVE: 50_000, KVM: 100_000}
CANARY_EVERY = 4
ITERATIONS = 3000
MAP_32BIT = 0x40
CANARY = BUILTIN["canary"]


def features(engine: Any) -> dict[str, bool]:
    """What rows may need, and whether it is here."""
    found = _core.features()
    offered = engine.offered(engine.manager.permissions.user_mask(engine.kind))
    tiles = mask_of(Component.TILECFG) | mask_of(Component.TILEDATA)
    return {
        "pkru": bool(offered & mask_of(Component.PKRU)),
        "tilecfg": bool(found["managed_mask"] & mask_of(Component.TILECFG)),
        "tiledata not permitted": found["managed_mask"] & tiles == tiles
        and not (found["permission"] or 0) & tiles & ~mask_of(Component.TILECFG),
        "xsavec": bool(found["xsavec"]) and engine.manager.config.compacted,
        "xsaves": Cpu.host().has("XSAVES"),
    }


def low_page() -> int:
    """Put the 32-bit code into memory below 4 GiB, and return where."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    address = libc.mmap(None, mmap.PAGESIZE, rights, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT, -1, 0)
    assert address < 1 << 32
    ctypes.memmove(address, LOW_PAGE, len(LOW_PAGE))
    return int(address)


def told(end: Exit) -> str:
    """How a guest ended, as the table says it."""
    return f"{end.signal} {end.vector}" if end.kind is ExitKind.FAULT else end.kind.value


def make_engine(kind: str, manager: Manager, timeout: float | None) -> Any:
    """Return an engine of a kind."""
    return (KvmEngine if kind == KVM else NativeEngine)(manager, timeout=timeout)


def allow(vcpu: Any, seconds: float) -> Any:
    """Give a guest another limit than the engine's."""
    if isinstance(vcpu.engine, KvmEngine):
        vcpu.used_ns = vcpu.engine.limit_ns - int(seconds * 1e9)
    else:
        vcpu.core.cycle_limit = int(seconds * _core.tsc_hz())
    return vcpu


def guests(
    engine: Any, kind: str, program: Program, chosen: list[Row], low: int
) -> Iterator[tuple[Row | None, Any]]:
    """Yield the rows' guests, and a canary (None) before each few of them."""
    seeds = itertools.count()
    for number, row in enumerate(chosen):
        if number % CANARY_EVERY == 0:
            yield None, allow(engine.vcpu(CANARY.load(), seed=next(seeds), argument=ITERATIONS), AMPLE)
        guest = engine.vcpu(program, argument=row.number << 32 | low)
        yield row, guest if row.ends.get(kind) == EXPIRED else allow(guest, AMPLE)


def canary_problem(vcpu: Any, seed: int) -> str | None:
    """Say what is wrong with a canary's end."""
    if vcpu.exit.kind is not ExitKind.FINISHED:
        return str(vcpu.exit)
    return CANARY.check(vcpu.block.result, seed, ITERATIONS, vcpu.block.features)


def main() -> None:
    """Run them and print the ends of each row, the canaries' problems, and what an audit finds afterwards."""
    path, kind, count, processors, *numbers = sys.argv[1:]
    manager = Manager(cpu_without_xsavec() if os.environ.get("FPSTATE_STANDARD") else None)
    engine = make_engine(kind, manager, TIMEOUT)
    program = Program.from_bytes(Path(path).read_bytes(), format="flat", name="hostile")
    every = [ROWS[int(number)] for number in numbers] or rows(kind, features(engine))
    chosen = list(itertools.islice(itertools.cycle(every), int(count) or len(every)))
    made = list(guests(engine, kind, program, chosen, 0 if kind == KVM else low_page()))
    Scheduler(engine, quantum_ns=QUANTUM_NS[kind], processors=int(processors)).run([vcpu for _, vcpu in made])
    ends: dict[int, list[str]] = {}
    for row, vcpu in made:
        if row is not None:
            ends.setdefault(row.number, []).append(told(vcpu.exit))
    canaries = [vcpu for row, vcpu in made if row is None]
    problems = [canary_problem(vcpu, seed) for seed, vcpu in enumerate(canaries)]
    held = manager.statistics().bytes_held
    engine.close()
    report = audit(make_engine(kind, manager, None), contexts=16)
    report = {
        "ends": {number: sorted(set(found)) for number, found in ends.items()},
        "guests": sum(map(len, ends.values())),
        "canaries": len(canaries),
        "wrong": [problem for problem in problems if problem],
        "held": held,
        "leaks": [str(leak) for leak in report.leaks],
        "damaged": report.damaged,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
