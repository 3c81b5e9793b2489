"""Every kind of source under the judge, each in a process of its own; what breaks is kept in build/fuzz.

python tests/fuzz/campaign.py (--seconds S | --inputs N) [--seed S] [--unguided] [--kind KIND ...]
python tests/fuzz/campaign.py --again build/fuzz/NAME.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from grammar.kinds import SHARES, make
from judge import Break, Judge
from session import CURRENT, STATS, keep
from trial import Trial

HERE: Final = Path(__file__).parent
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_DEATHS: Final = 5
_COLUMNS: Final = ("kind", "inputs", "broken", "MiB", "CPU s", "inflated", "lines reached", "edges")


def main() -> int:
    """Fuzz and print a table; 1 where something broke."""
    args = _arguments()
    if args.again:
        return again(args.again)
    guided = not args.unguided and _has_atheris()
    if not guided:
        print("without atheris: numbered inputs, which nothing guides", file=sys.stderr)
    kinds = args.kind or list(SHARES)
    whole = sum(SHARES[kind] for kind in kinds)
    rows, broken = [], 0
    for kind in kinds:
        share = SHARES[kind] / whole
        inputs = round(args.inputs * share) if args.inputs else 0
        bounds = [f"-runs={inputs}"] if inputs else [f"-max_total_time={max(1, round(args.seconds * share))}"]
        with tempfile.TemporaryDirectory(prefix="fpstate-fuzz-") as work:
            row = _kind(kind, Path(work), args.finds, bounds, args.seed, guided=guided)
        print("  ".join(f"{name} {value}" for name, value in zip(_COLUMNS, row, strict=True)), flush=True)
        if guided and row[-1] == "-":
            print(f"{kind}: the search saw no code that it could follow", file=sys.stderr)
            broken += 1
        rows.append(row)
        broken += int(row[2])
    print(f"{sum(int(row[1]) for row in rows)} inputs, {broken} broke something; finds: {args.finds}")
    return int(broken > 0)


def again(path: Path) -> int:
    """Run a kept break once more; 1 where it still breaks something."""
    told = json.loads(path.read_text())
    made = make(told["kind"], bytes.fromhex(told["choices"]))
    with Judge() as judge, Trial(judge) as trial:
        outcome = trial.run(made)
    for each in outcome.breaks:
        print(f"{each.key}: {each.text}")
    print(f"{made.kind}, {len(made.data)} bytes: {outcome.memory >> 20} MiB, {outcome.seconds:.2f} s")
    return int(bool(outcome.breaks))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz every kind of source.")
    parser.add_argument("--seconds", type=int, default=60, help="how long in all")
    parser.add_argument("--inputs", type=int, default=0, help="how many in all, instead of --seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=list(SHARES))
    parser.add_argument(
        "--unguided", action="store_true", help="numbered inputs, also where atheris is there"
    )
    parser.add_argument("--finds", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--again", type=Path, metavar="JSON", help="run a kept break once more")
    return parser.parse_args()


def _has_atheris() -> bool:
    """Ask in another process: what is imported here stays."""
    return subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True).returncode == 0


def _kind(
    kind: str, work: Path, finds: Path, bounds: list[str], seed: int, *, guided: bool
) -> tuple[str, ...]:
    """Fuzz one kind, again from where it died if it does; return its row of the table."""
    script, edges = HERE / ("guided.py" if guided else "unguided.py"), "-"
    all_stats: list[dict[str, Any]] = []
    deaths = 0
    while True:
        options = [f"-seed={seed + deaths}", *_rest(bounds, all_stats)]
        asked = [sys.executable, str(script), kind, str(work), str(finds), *options]
        # The same seed is to be the same search, and sets have an order that coverage sees.
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        ended = subprocess.run(asked, stderr=subprocess.PIPE, text=True, errors="replace", env=environment)
        if (work / STATS).exists() and (text := (work / STATS).read_text()):
            all_stats.append(json.loads(text))
        if found := _COVERAGE.findall(ended.stderr):
            edges = found[-1][0]
        if ended.returncode == 0:
            break
        deaths += 1
        _died(kind, work, finds, ended)
        if deaths == _DEATHS or not all_stats:
            break
    return _row(kind, all_stats, deaths, _reached(kind, work) if guided else "-", edges)


def _rest(bounds: Sequence[str], done: Sequence[dict[str, Any]]) -> list[str]:
    """What is left of a count of inputs."""
    tried = sum(each["inputs"] for each in done)
    return [
        f"-runs={max(1, int(bound[6:]) - tried)}" if bound.startswith("-runs=") else bound for bound in bounds
    ]


def _died(kind: str, work: Path, finds: Path, ended: subprocess.CompletedProcess[str]) -> None:
    data = (work / CURRENT).read_bytes() if (work / CURRENT).exists() else b""
    text = f"exit code {ended.returncode}: {ended.stderr[-600:]}"
    print(f"{kind}: the process died, {text}", file=sys.stderr)
    finds.mkdir(parents=True, exist_ok=True)
    keep(finds, Break("death", str(ended.returncode), text), kind, data, seed_number=None, choices=data)


def _reached(kind: str, work: Path) -> str:
    """Run what the search kept once more, and count lines."""
    asked = [sys.executable, str(HERE / "reach.py"), kind, str(work / "corpus")]
    ended = subprocess.run(asked, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        return "?"
    ran, there = map(int, ended.stdout.split())
    return f"{ran}/{there} ({100 * ran // there}%)"


def _row(kind: str, stats: list[dict[str, Any]], deaths: int, reached: str, edges: str) -> tuple[str, ...]:
    def worst(name: str) -> Any:
        return max((each[name] for each in stats), default=0)

    keys = {key for each in stats for key in each["breaks"]}
    for key in sorted(keys):
        print(f"{kind}: {key}", file=sys.stderr)
    return (
        *(kind, str(sum(each["inputs"] for each in stats)), str(len(keys) + deaths)),
        *(f"{worst('worst_memory') / (1 << 20):.1f}", f"{worst('worst_seconds'):.2f}"),
        *(f"{worst('worst_inflated') >> 20} MiB", reached, edges),
    )


if __name__ == "__main__":
    sys.exit(main())
