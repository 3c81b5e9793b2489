"""What parking a context saves in bytes, and what packing and unpacking it cost beside a plain switch; one run.

The classes are what a glibc process has in use with few live registers, SSE, AVX, all but x87, and everything.

    python tests/benchmarks/parking.py [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

from fpstate import Context, Cpu, Image, Layout, _core
from fpstate.arch import Component, mask_of
from fpstate.arch.component import LEGACY
from fpstate.bench.state import image_of
from fpstate.vso.switching import load

REPEATS, ROUNDS = 40, 200
SSE, AVX = mask_of(Component.SSE), mask_of(Component.SSE, Component.AVX)


def typical_image(cpu: Cpu, managed: int) -> Image:
    """SSE, opmask and Hi16_ZMM in use, five registers live: what argv and a string function leave."""
    layout = Layout.compacted(cpu, (LEGACY | mask_of(Component.OPMASK, Component.HI16_ZMM)) & managed)
    image = Image.initial(layout)
    for name in ("xmm0", "xmm1", "k1", "zmm16", "zmm17"):
        if name in image.registers.names(widest=False):
            image.registers[name] = 0x2F62_696E
    return image


def classes(cpu: Cpu, managed: int) -> dict[str, Image]:
    """Return an image of each class that this processor has."""
    found = {
        "glibc process": typical_image(cpu, managed),
        "SSE": image_of(SSE),
        "AVX": image_of(AVX & managed),
        "all but x87": image_of(managed & ~1),
        "everything": image_of(managed),
    }
    return {name: image for name, image in found.items() if name != "AVX" or managed & AVX == AVX}


def nanoseconds(action: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Return the time of one call, each made after ``prepare``."""
    total = 0
    for _ in range(ROUNDS):
        prepare()
        start = time.perf_counter_ns()
        action()
        total += time.perf_counter_ns() - start
    return total / ROUNDS


def measure() -> dict[str, object]:
    """Run every class in turn, many times."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cpu, managed = Cpu.host(), _core.features()["managed_mask"]
    host, empty = Context(), Context()
    rows = {}
    for name, image in classes(cpu, managed).items():
        context = Context()
        load(context, image)
        held = context.size
        context.park()
        rows[name] = {
            **{"image": image.layout.size, "held": held, "parked": context.size},
            "ns": {"call": [], "park": [], "switch": [], "unpark and switch": []},
            "context": context,
        }
    for _ in range(REPEATS):
        for row in rows.values():
            context, ns = row["context"], row["ns"]

            def awake(context: Context = context) -> None:
                _core.switch(host, context)
                _core.switch(empty, host)

            def into(context: Context = context) -> None:
                _core.switch(host, context)
                _core.switch(context, host)

            ns["call"].append(nanoseconds(empty.park, lambda: None))
            ns["park"].append(nanoseconds(context.park, awake))
            ns["switch"].append(nanoseconds(into, awake))
            ns["unpark and switch"].append(nanoseconds(into, context.park))
    for row in rows.values():
        del row["context"]
        row["ns"] = {
            key: {"min": round(min(values)), "median": round(statistics.median(values))}
            for key, values in row["ns"].items()
        }
    return {
        "schema": "fpstate-bench/1",
        "cpu": f"{cpu.vendor} family {cpu.family} model {cpu.model}",
        "core": _core.core_choice()["core"],
        "repeats": REPEATS,
        "parking": rows,
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
        f"{found['cpu']}, {found['core']} core; bytes, and min of {REPEATS} times in ns, each beside an empty call"
    )
    columns = ("call", "park", "switch", "unpark and switch")
    print(f"{'in use':<16}{'image':>8}{'held':>8}{'parked':>8}" + "".join(f"{name:>20}" for name in columns))
    for name, row in found["parking"].items():
        times = "".join(f"{row['ns'][column]['min']:>20}" for column in columns)
        print(f"{name:<16}{row['image']:>8}{row['held']:>8}{row['parked']:>8}{times}")
    print("switch and unpark: to the context and back, two switches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
