"""``fpstate show``: the registers of each thread of a core, a process or a file, decoded."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from fpstate.errors import LayoutError, RegisterError, SourceError
from fpstate.image.finding import Severity
from fpstate.image.register import register_named
from fpstate.source.raw_format import FORMATS
from fpstate.source.thread import ThreadState

if TYPE_CHECKING:
    from fpstate.arch.cpu import Cpu
    from fpstate.arch.layout import Layout

SCHEMA: Final = "fpstate-show/1"
_LAYOUT_LIMIT: Final = 1 << 20
LANE_TYPES: Final = (
    "hex",
    "f64",
    "f32",
    "f16",
    "bf16",
    *(f"{sign}{size}" for sign in "iu" for size in (8, 16, 32, 64)),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``show`` to the command line."""
    parser = subparsers.add_parser(
        "show",
        help="show the registers of the threads of a core, a process or a file",
        description="Registers that are not initial, thread by thread. What they hold may be secret.",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="a core or other file, - for standard input, or a PID"
    )
    parser.add_argument("--all", action="store_true", help="registers in their initial configuration too")
    parser.add_argument(
        "--register", metavar="NAME", action="append", default=[], help="this register alone; repeatable"
    )
    parser.add_argument("--thread", metavar="TID", type=int, help="this thread alone")
    parser.add_argument(
        "--as", metavar="TYPE", dest="lane_type", choices=LANE_TYPES, default="hex",
        help=f"show vectors as lanes, lowest first: {', '.join(LANE_TYPES)}",
    )  # fmt: skip
    parser.add_argument(
        "--no-values", action="store_true", help="name the registers, leave out what they hold"
    )
    parser.add_argument(
        "--cpu", metavar="NAME", help="the processor that made the state, if it does not say itself"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="of raw bytes; told from length and header if not given"
    )
    parser.add_argument(
        "--layout", metavar="FILE", help="of raw bytes: JSON as convert --json prints it, instead of --cpu"
    )
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the threads; 1 where something about them is wrong or lost. Raises what sources raise."""
    from fpstate.command.register_report import Wanted, describe
    from fpstate.source.open import open_source

    layout = None if args.layout is None else _layout(args.layout)
    states = open_source(args.source, cpu=_cpu(args.cpu), format=args.format, layout=layout)
    threads = _chosen(states, args.thread, args.source)
    _check_names(args.register, threads)
    wanted = Wanted(
        all=args.all, names=tuple(args.register), values=not args.no_values, lane_type=args.lane_type
    )
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "source": args.source,
        "threads": [describe(thread, wanted, views=args.json) for thread in threads],
    }
    if args.json:
        import json

        # Without indentation json is several times as fast; programs do not need any.
        print(json.dumps(report, indent=1 if sys.stdout.isatty() else None))
    else:
        from fpstate.command.render import render

        render(report, wanted)
    grave = {Severity.ERROR.value, Severity.WARNING.value}
    return int(any(item["severity"] in grave for each in report["threads"] for item in each["findings"]))


def _cpu(name: str | None) -> Cpu | None:
    if name is None:
        return None
    from fpstate.arch.cpu import Cpu

    return Cpu.host() if name == "host" else Cpu.catalog(name)


def _layout(path: str) -> Layout:
    """Read a layout, or a document that has one under ``layout``; raises LayoutError and OSError."""
    import json

    from fpstate.arch.layout import Layout

    with open(path, "rb") as file:
        text = file.read(_LAYOUT_LIMIT)
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: {error}") from error
    return Layout.from_dict(data.get("layout", data) if isinstance(data, dict) else {})


def _chosen(threads: list[ThreadState], tid: int | None, source: str) -> list[ThreadState]:
    chosen = [thread for thread in threads if tid is None or thread.tid == tid]
    if not chosen:
        known = ", ".join("?" if thread.tid is None else str(thread.tid) for thread in threads[:20])
        raise SourceError(source, f"no thread {tid}", help=f"threads: {known or 'none'}")
    return chosen


def _check_names(names: list[str], threads: list[ThreadState]) -> None:
    """Refuse a register that no thread has: no such name, no room for it, or lost by whoever wrote the source."""
    for name in names:
        if any(name in thread.image.registers for thread in threads):
            continue
        components = {part.component for part in register_named(name).parts}
        for finding in threads[0].findings:
            if finding.component in components:
                raise RegisterError(name, f"not known. {finding.message}", help=finding.help)
        threads[0].image.registers.size_of(name)
