"""How long the threads of a process stand still while they are read, and how much faster that is than gdb.

A process with many sleeping threads is read in turn by this package, by its command line, and by gdb (attach, print
one register of every thread, detach). Times are medians of interleaved runs:

- longest: the longest that one thread stood still;
- window: from the first request to stop to the last release;
- snapshot: the whole call in Python, images and names included;
- threads: the command ``fpstate threads``, interpreter start included.

    python tests/benchmarks/snapshot.py [--threads 1000] [--runs 9] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fpstate.source.process import snapshot

STOP_TARGET_MS = 25.0
RATIO_TARGET = 15.0
SOURCE = Path(__file__).parent.parent / "integration" / "live" / "target.c"


def milliseconds(action: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def quietly(*command: str) -> Callable[[], object]:
    """Run a command without its output."""
    return lambda: subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def measure(threads: int, runs: int) -> dict[str, object]:
    """Run everything in turn, several times."""
    gdb = shutil.which("gdb")
    samples: dict[str, list[float]] = {
        name: [] for name in ("longest", "window", "snapshot", "threads", "gdb")
    }
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/target"
        subprocess.run([shutil.which("gcc") or "gcc", "-O2", "-pthread", "-o", target, SOURCE], check=True)
        process = subprocess.Popen([target, "sleep", str(threads)], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            pid = process.pid
            gdb_command = (gdb or "", "-nx", "-batch", "-p", str(pid), "-ex", "thread apply all p $xmm0")
            for _ in range(runs):
                start = time.perf_counter()
                found = snapshot(pid)
                samples["snapshot"].append((time.perf_counter() - start) * 1e3)
                assert len(found.threads) == threads
                samples["longest"].append(found.longest * 1e3)
                samples["window"].append(found.stop * 1e3)
                samples["threads"].append(
                    milliseconds(quietly(sys.executable, "-m", "fpstate", "threads", str(pid)))
                )
                if gdb:
                    samples["gdb"].append(milliseconds(quietly(*gdb_command)))
        finally:
            process.kill()
            process.wait()
    medians = {name: round(statistics.median(values), 2) for name, values in samples.items() if values}
    return {
        "schema": "fpstate-bench/1",
        "threads": threads,
        "runs": runs,
        "load": round(os.getloadavg()[0], 2),
        "median_ms": medians,
        "min_ms": {name: round(min(values), 2) for name, values in samples.items() if values},
        "gdb_ratio": round(medians["gdb"] / medians["snapshot"], 1) if gdb else None,
        "gdb_ratio_of_command": round(medians["gdb"] / medians["threads"], 1) if gdb else None,
        "targets": {"longest_ms": STOP_TARGET_MS, "gdb_ratio": RATIO_TARGET},
    }


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.threads, args.runs)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(
        f"{found['threads']} threads, {found['runs']} runs in turn, load {found['load']}; median / min in ms"
    )
    for name, value in found["median_ms"].items():
        print(f"{name:<10}{value:>10} / {found['min_ms'][name]}")
    if found["gdb_ratio"] is None:
        print("gdb is not installed: nothing to compare with")
    else:
        print(
            f"gdb takes {found['gdb_ratio']} times as long as snapshot,"
            f" {found['gdb_ratio_of_command']} times as long as the command"
        )
    print(
        f"targets: no thread stands still longer than {STOP_TARGET_MS} ms, {RATIO_TARGET} times faster than gdb"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
