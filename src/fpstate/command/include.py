"""``fpstate include``: where the C headers lie."""

from __future__ import annotations

import argparse

from fpstate.command import output
from fpstate.program.installed import include_dir


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``include`` to the command line."""
    parser = subparsers.add_parser(
        "include", help="print the folder of fpstate.h and fpstate_guest.h, for gcc -I"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the folder; raises UnsupportedHere where the package was not built."""
    output.path(str(include_dir()))
    return 0
