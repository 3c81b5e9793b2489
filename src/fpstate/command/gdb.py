"""``fpstate gdb``: where the commands for gdb lie."""

from __future__ import annotations

import argparse
from pathlib import Path

import fpstate.gdb
from fpstate.command import output


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``gdb`` to the command line."""
    parser = subparsers.add_parser(
        "gdb",
        help="print the file of gdb commands, for gdb's source command",
        description='Print the path of the gdb extension: gdb -ex "source $(fpstate gdb)" PROGRAM CORE.'
        " It adds fpstate show, fpstate threads and info fpenv.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the path."""
    output.path(str(Path(fpstate.gdb.__file__).with_name("extension.py")))
    return 0
