#!/usr/bin/env python3
"""Replay a folder of recorded answers: hold it against rules and models, with the parameters of its processor.

The folder is one that tools/record_oracles.py made, on this machine or on another; see docs/recordings.md. The exit
status is 1 where an answer is not foretold, and 2 where files are not what SHA256SUMS says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "replay")]

from every_replay import reports  # noqa: E402

from recorded import Oracles  # noqa: E402


def main() -> int:
    """Replay every file, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    oracles = Oracles(parser.parse_args().folder)
    if altered := oracles.altered():
        print(f"replay_oracles: not as in SHA256SUMS: {', '.join(altered)}", file=sys.stderr)
        return 2
    disagreements = 0
    for name in oracles.names():
        file = oracles.read(name)
        found = reports(oracles, file)
        wrong = sum(report.disagreements for report in found)
        disagreements += wrong
        print(f"{name:20} {len(file.cases):6} cases, {wrong} disagreements", flush=True)
        for report in found:
            print("".join(f"  {told}\n" for told in report.told), end="")
    return 1 if disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
