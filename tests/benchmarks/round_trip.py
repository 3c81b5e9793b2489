"""What a voluntary round trip into a guest costs, as a ratio to bare XSAVEC + XRSTOR, in one interleaved run.

Two guests with every component in use call out at once, in turn: each round trip saves one and restores the other.
The bare pair saves to one buffer and restores from another, with the same components in use.

    python tests/benchmarks/round_trip.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time

from fpstate import Cpu, Image, Layout, Manager, NativeEngine, Program, _core
from fpstate.arch.component import COMPONENTS, LEGACY, components_in, mask_text
from fpstate.engine.native import NativeQueue

ROUNDS = 100_000
REPEATS = 60
YIELD_FOR_EVER = bytes.fromhex("b80100000065ff142500000000ebf1")
"""1: mov $1, %eax; call *%gs:0; jmp 1b"""
TARGET = 1.6
DATA_REGISTERS = ("st", "xmm", "ymm", "zmm", "k")


def busy_image(cpu: Cpu, mask: int) -> Image:
    """Return an image with something in every register of the components in ``mask``."""
    image = Image.initial(Layout.compacted(cpu, mask | LEGACY))
    registers = image.registers
    for component in components_in(mask):
        for field in COMPONENTS[component].fields:
            if field.name.startswith(DATA_REGISTERS):
                registers[field.name] = (1 << 8 * field.size - 2) - 1
    return image


def guests(manager: Manager, image: Image | None, timing: bool) -> NativeQueue:
    """Return a queue of two guests with this state."""
    engine = NativeEngine(manager)
    queue = NativeQueue(engine, timing=timing)
    program = Program.from_bytes(YIELD_FOR_EVER, format="flat", name="yield for ever")
    for _ in range(2):
        vcpu = engine.vcpu(program)
        if image is not None:
            manager.load(vcpu.vso, image)
            vcpu.attach()
        queue.add(vcpu)
    return queue


def round_trip(queue: NativeQueue) -> float:
    """Return the nanoseconds of one round trip: enter, come back by the exit call, save."""
    start = time.perf_counter_ns()
    queue.run(1_000_000_000, 10_000_000_000, ROUNDS)
    return (time.perf_counter_ns() - start) / ROUNDS


def measure() -> dict[str, object]:
    """Run everything in turn, many times."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cpu = Cpu.host()
    managed = _core.features()["managed_mask"]
    classes = {
        "initial": 0,
        "sse": LEGACY & ~1,
        "legacy": LEGACY,
        "all but x87": managed & ~1,
        "everything": managed,
    }
    results = {}
    for name, mask in classes.items():
        image = busy_image(cpu, mask)
        manager = Manager(shrink_after=0)
        plain = guests(manager, image if mask else None, timing=False)
        timed = guests(manager, image if mask else None, timing=True)
        pairs, trips, timed_trips = [], [], []
        for _ in range(REPEATS):
            pairs.append(_core.bench_pairs(image.to_bytes(), ROUNDS) / ROUNDS)
            trips.append(round_trip(plain))
            timed_trips.append(round_trip(timed))
        results[name] = {
            "mask": hex(mask),
            "pair_ns": {"min": round(min(pairs), 1), "median": round(statistics.median(pairs), 1)},
            "round_trip_ns": {"min": round(min(trips), 1), "median": round(statistics.median(trips), 1)},
            "ratio": {
                "min": round(min(trips) / min(pairs), 3),
                "median": round(statistics.median(trips) / statistics.median(pairs), 3),
            },
            "ratio_with_time_stamps": round(min(timed_trips) / min(pairs), 3),
        }
    return {
        "schema": "fpstate-bench/1",
        "cpu": f"{cpu.vendor} family {cpu.family} model {cpu.model}",
        "components": mask_text(managed),
        "rounds": ROUNDS,
        "repeats": REPEATS,
        "target": TARGET,
        "round_trip": results,
    }


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(
        f"{found['cpu']}, {found['components']}; {ROUNDS} round trips, {REPEATS} times, in turn; min / median in ns"
    )
    print(f"{'in use':<14}{'XSAVEC+XRSTOR':>20}{'round trip':>20}{'ratio':>16}{'with time stamps':>20}")
    for name, row in found["round_trip"].items():
        cells = [f"{row[key]['min']} / {row[key]['median']}" for key in ("pair_ns", "round_trip_ns", "ratio")]
        print(f"{name:<14}{cells[0]:>20}{cells[1]:>20}{cells[2]:>16}{row['ratio_with_time_stamps']:>20}")
    print(f"target: a ratio of at most {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
