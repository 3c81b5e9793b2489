#!/usr/bin/env python3
"""Record what this processor and its kernel answer to random images and sequences of instructions.

The folder that comes of it has the form told in tests/data/oracles_intel/README.md, so that rules and model can be
held against this machine on any other; see docs/recordings.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "hardware")]

from recording.folder import DEFAULT_CASES, KINDS, PERMISSIONS, Recorder  # noqa: E402

from fpstate.errors import FpStateError  # noqa: E402


def main() -> int:
    """Record, and return the exit status."""
    arguments = _parser().parse_args()
    kinds = arguments.kinds or KINDS
    for kind in (*kinds, *(kind for kind, _ in arguments.cases)):
        if kind not in KINDS:
            return _failed(f"there is no kind {kind!r}: {', '.join(KINDS)}")
    compiler = shutil.which(arguments.cc)
    if compiler is None:
        return _failed(f"{arguments.cc} is missing: it compiles the program that executes the instructions")
    folder = Path(arguments.out)
    if folder.exists() and any(folder.iterdir()):
        return _failed(f"{folder} is not empty")
    permission = PERMISSIONS.get(arguments.permission)
    try:
        with Recorder(folder, compiler, seed=arguments.seed) as recorder:
            if permission not in (None, *recorder.host.permissions):
                return _failed("this machine has no TILEDATA to ask permission for (XCR0[18], XFD)")
            _record(recorder, kinds, dict(arguments.cases), permission)
    except FpStateError as error:
        return _failed(str(error))
    return 0


def _record(
    recorder: Recorder, kinds: tuple[str, ...], cases: dict[str, int], permission: int | None
) -> None:
    cpu = recorder.host.cpu
    print(f"{cpu.vendor} {cpu.family}-{cpu.model}-{cpu.stepping}, XCR0 {recorder.host.xcr0:#x}", flush=True)
    begun = time.monotonic()
    for name, count in recorder.record(kinds, cases, permission):
        now = time.monotonic()
        size = (recorder.oracles.folder / f"{name}.jsonl.xz").stat().st_size
        print(f"{name:20} {count:6} cases {size:8} bytes {now - begun:6.1f} s", flush=True)
        begun = now
    for name, reason in recorder.missing.items():
        print(f"{name:20} left out; missing: {reason}")
    print(f"written to {recorder.oracles.folder}")


def _failed(reason: str) -> int:
    print(f"record_oracles: {reason}", file=sys.stderr)
    return 2


def _cases(text: str) -> tuple[str, int]:
    kind, _, count = text.partition("=")
    return kind, int(count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = ", ".join(f"{kind}={count}" for kind, count in DEFAULT_CASES.items())
    parser.add_argument(
        "kinds", metavar="KIND", nargs="*", help=f"what to record: {', '.join(KINDS)}; default: all"
    )
    parser.add_argument(
        "--out", default="build/oracles", metavar="FOLDER", help="an empty or new folder (build/oracles)"
    )
    parser.add_argument("--cases", type=_cases, nargs="+", action="extend", default=[], metavar="KIND=N",
                        help=f"cases of a kind; of some files a part of that ({defaults})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of pool and inputs (1)")
    parser.add_argument("--permission", choices=PERMISSIONS,
                        help="for TILEDATA: not asked for, tiles used before, not used yet; default: each")  # fmt: skip
    parser.add_argument("--cc", default="gcc", metavar="COMPILER", help="the C compiler (gcc)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
