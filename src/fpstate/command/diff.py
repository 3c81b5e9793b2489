"""``fpstate diff``: the registers in which two states differ."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fpstate.command import output
from fpstate.command.state_file import processor, read_state
from fpstate.command.tile_report import configuration, configuration_words, different_rows, is_tile
from fpstate.errors import FpStateError
from fpstate.image import Difference, differences
from fpstate.source.raw_format import FORMATS

SCHEMA: Final = "fpstate-diff/1"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``diff`` to the command line."""
    parser = subparsers.add_parser(
        "diff",
        help="compare the registers of two states",
        description="Registers are compared, not bytes: layouts, formats and in-use bitmaps do not matter, and FOP,"
        " FIP and FDP only while an unmasked x87 exception is pending. The exit code is 1 where they differ. Options"
        " that are given twice are for A and B in turn.",
    )
    parser.add_argument("a", metavar="A", help="raw bytes, - for standard input, a core or a PID")
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument(
        "--cpu", metavar="NAME", action="append", default=[],
        help="the processor that made the states: of the catalog, or host",
    )  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, action="append", default=[], help="of raw bytes")
    parser.add_argument(
        "--thread", metavar="TID", type=int, action="append", default=[], help="of a core or process"
    )
    parser.add_argument("--exact", action="store_true", help="compare FOP, FIP and FDP always")
    parser.add_argument(
        "--no-values", action="store_true", help="name the registers, leave out what they hold"
    )
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the differences; 1 where there are any."""
    if args.a == args.b == "-":
        raise FpStateError("standard input holds one state, not two", help="name a file for one of them")
    images = [
        read_state(
            source,
            cpu=processor(_in_turn("--cpu", args.cpu, index)),
            format=_in_turn("--format", args.format, index),
            thread=_in_turn("--thread", args.thread, index),
        )
        for index, source in enumerate((args.a, args.b))
    ]
    found = differences(*images, exact=args.exact)
    if args.json:
        output.document(describe(args, found))
    else:
        output.lines(lines(found, values=not args.no_values))
        if not found:
            output.message("no register differs")
    return 1 if found else 0


def describe(args: argparse.Namespace, found: Sequence[Difference]) -> dict[str, Any]:
    """Return the comparison as JSON-ready data; values are hexadecimal strings, null with ``--no-values``."""
    return {
        "schema": SCHEMA,
        "a": args.a,
        "b": args.b,
        "exact": args.exact,
        "equal": not found,
        "differences": [_describe(each, values=not args.no_values) for each in found],
    }


def lines(found: Sequence[Difference], *, values: bool) -> Iterator[str]:
    """Yield one line for each register, and two more with its fields where it has such."""
    width = max((len(each.register) for each in found), default=0)
    for each in found:
        name = f"{each.register:{width}}"
        components = "|".join(each.components)
        if not values:
            yield f"{name}  {components}"
            continue
        if is_tile(each.register):
            yield f"{name}  ({components})"
            yield from (f"{'':{width}}  row {row}: {a} | {b}" for row, a, b in different_rows(each.a, each.b))
            continue
        yield f"{name}  {each.a:#x} | {each.b:#x}  ({components})"
        for side, text in zip("ab", _decoded(each) or (), strict=False):
            yield f"{'':{width}}    {side}: {text}"


def _describe(each: Difference, *, values: bool) -> dict[str, Any]:
    decoded = _decoded(each) if values else None
    return {
        "register": each.register,
        "components": list(each.components),
        "a": hex(each.a) if values else None,
        "b": hex(each.b) if values else None,
        "decoded": None if decoded is None else {"a": decoded[0], "b": decoded[1]},
    }


def _decoded(difference: Difference) -> tuple[str, str] | None:
    """Return both values in words, where there are words for them."""
    if difference.register == "tilecfg":
        a, b = (configuration_words(configuration(value)) for value in (difference.a, difference.b))
        return a, b
    return difference.decoded()


def _in_turn(option: str, values: Sequence[Any], index: int) -> Any:  # noqa: ANN401
    """Return what an option that may be given once or twice says of A (0) or of B (1)."""
    if len(values) > 2:
        raise FpStateError(f"{option} was given {len(values)} times, but there are two states")
    return values[min(index, len(values) - 1)] if values else None
