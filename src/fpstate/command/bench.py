"""``fpstate bench``: what a switch costs beside the bare instructions, its peers, and in memory."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from fpstate.bench.measured import SCHEMA, Settings
from fpstate.bench.quantity import SECTIONS, beyond
from fpstate.command import output
from fpstate.engine.native import missing
from fpstate.errors import FpStateError, UnsupportedHere
from fpstate.source.durable import FIGURES, write_file
from fpstate.source.place import place_of


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``bench`` to the command line."""
    parser = subparsers.add_parser("bench", help="measure switches beside their peers, in turn, as ratios")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(SECTIONS)}")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.add_argument("--plot", metavar="FILE.svg", type=Path, help="draw the figures too")
    parser.add_argument("--repeats", type=int, metavar="N", help="samples of each figure (30)")
    parser.add_argument(
        "--quick", action="store_true", help="few samples: shows that it works, measures little"
    )
    parser.add_argument(
        "--gate", action="store_true", help="exit with 1 where a limit is missed by half and more"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 with ``--gate`` where a limit is missed by a wide margin. Raises UnsupportedHere."""
    _check(args)
    lacking = missing()
    if lacking:
        raise UnsupportedHere(lacking, help="see: fpstate cpu")
    from fpstate.bench.plot import draw
    from fpstate.bench.report import measure
    from fpstate.bench.table import lines

    settings = Settings.quickly() if args.quick else Settings()
    if args.repeats is not None:
        settings = replace(settings, repeats=args.repeats)
    report = measure(args.names, settings, _announce)
    if args.plot:
        write_file(args.plot, draw(report).encode(), mode=FIGURES)
    if args.json:
        output.document(report)
    else:
        output.lines(lines(report))
    return _gate(beyond(report)) if args.gate else 0


def _announce(name: str) -> None:
    output.message(f"bench: {name}")
    sys.stderr.flush()


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be before minutes are spent on it."""
    unknown = sorted(set(args.names) - set(SECTIONS))
    if unknown:
        known = ", ".join(SECTIONS)
        raise FpStateError(f"nothing is measured under the name {unknown[0]!r}", help=f"known: {known}")
    if args.repeats is not None and args.repeats < 1:
        raise FpStateError(f"--repeats {args.repeats}: at least 1")
    if args.plot and not args.plot.parent.is_dir():
        raise FpStateError(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    if args.plot and (
        args.plot.is_dir() or not os.access(args.plot if args.plot.exists() else args.plot.parent, os.W_OK)
    ):
        raise FpStateError(f"--plot {args.plot}: it cannot be written")
    if args.plot:
        with place_of(args.plot):
            pass  # raises for a link that is not followed


def _gate(beyond: list[str]) -> int:
    for name in beyond:
        output.message(f"fpstate: {name} misses its limit by more than half")
    return 1 if beyond else 0
