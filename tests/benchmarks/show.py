"""``fpstate show --json`` of a core with six threads, against gdb asked for the same registers of the same core.

Both start anew each time, in turn, so that other load falls on both. The core is made here, with Intel's offsets and
all registers different, since gdb before 14 reads no others right; another can be named with --core.
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
from collections.abc import Sequence
from pathlib import Path

from fpstate.arch import Cpu, Layout
from fpstate.testing import random_image
from fpstate.testing.core import linux_notes, register_set, write_core

THREADS = 6
TARGET = 3.0
REGISTERS = (
    *(f"st{n}" for n in range(8)),
    *("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop", "mxcsr", "pkru"),
    *(f"{kind}mm{n}" for kind in "xyz" for n in range(32)),
    *(f"k{n}" for n in range(8)),
)
"""What ``show --json --all`` states of this core, but for those that gdb has no name for."""
_NOT_GDBS = {"ftag_abridged", "mxcsr_mask", "fip", "fdp"}


def main() -> int:
    """Measure, print, and answer 1 where the target is missed, 3 where there is no gdb."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--core", type=Path, help="a core that is not compressed")
    args = parser.parse_args()
    gdb = shutil.which("gdb")
    if gdb is None:
        print("gdb is not installed", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory() as folder:
        core = args.core or _core(Path(folder))
        # Installed packages have their bytecode; a development tree may be told not to write any.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        ours = [str(Path(sys.executable).with_name("fpstate")), "show", "--json", "--all", str(core)]
        theirs = [gdb, "-batch", "-nx", "-ex", f"thread apply all -q info registers {' '.join(REGISTERS)}"]
        theirs += ["-c", str(core)]
        _check(_run(ours, environment), _run(theirs, environment))
        times = _interleaved(ours, theirs, environment, args.rounds)
    medians = [statistics.median(each) for each in times]
    report = {
        "schema": "fpstate-bench-show/1",
        "threads": THREADS,
        "rounds": args.rounds,
        "fpstate_ms": round(medians[0] * 1e3, 1),
        "gdb_ms": round(medians[1] * 1e3, 1),
        "ratio": round(medians[1] / medians[0], 2),
        "target": TARGET,
        "met": medians[1] / medians[0] >= TARGET,
        "gdb": subprocess.run([gdb, "--version"], capture_output=True, text=True).stdout.split("\n")[0],
    }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"fpstate show --json  {report['fpstate_ms']} ms\n{report['gdb']}  {report['gdb_ms']} ms")
        print(f"gdb takes {report['ratio']} times as long (target: {TARGET})")
    return 0 if report["met"] else 1


def _core(folder: Path) -> Path:
    layout = Layout.standard(Cpu.catalog("ice-lake-sp"))
    states = [(1000 + n, register_set(random_image(layout, n, present=layout.mask))) for n in range(THREADS)]
    path = folder / "six.core"
    path.write_bytes(write_core(linux_notes(states)))
    return path


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def _check(ours: str, theirs: str) -> None:
    """Both must have answered for every thread, and where they are easily compared, alike."""
    threads = json.loads(ours)["threads"]
    if any(set(thread["registers"]) - _NOT_GDBS != set(REGISTERS) for thread in threads):
        raise SystemExit("the two are not asked for the same registers")
    lines = [line.split() for line in theirs.splitlines()]
    for name in ("k1", "k7", "fctrl", "mxcsr"):
        answers = sorted(
            int(line[1], 16) for line in lines if line and line[0] == name and line[1].startswith("0x")
        )
        if name == "mxcsr" and not answers:
            continue
        expected = sorted(int(thread["registers"][name], 16) for thread in threads)
        if answers != expected:
            raise SystemExit(f"{name}: gdb says {answers}, fpstate {expected}")
    if sum(line[:1] == ["zmm31"] for line in lines) != len(threads):
        raise SystemExit("gdb did not read zmm31 of every thread")


def _interleaved(
    ours: Sequence[str], theirs: Sequence[str], environment: dict[str, str], rounds: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for each, command in zip(times, (ours, theirs), strict=True):
            before = time.perf_counter()
            _run(command, environment)
            each.append(time.perf_counter() - before)
    return times


if __name__ == "__main__":
    sys.exit(main())
