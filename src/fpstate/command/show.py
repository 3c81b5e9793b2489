"""``fpstate show``: the registers of each thread of a core, a process or a file, decoded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from fpstate.errors import LayoutError, RegisterError, SourceError
from fpstate.image.finding import Severity
from fpstate.image.register import register_named
from fpstate.source.raw_format import FORMATS
from fpstate.source.thread import ThreadState

if TYPE_CHECKING:
    from fpstate.arch.cpu import Cpu
    from fpstate.arch.layout import Layout
    from fpstate.command.register_report import Wanted

SCHEMA: Final = "fpstate-show/1"
_LAYOUT_LIMIT: Final = 1 << 20
_LISTED: Final = 20
"""Threads that an error names."""
_GRAVE: Final = {Severity.ERROR.value, Severity.WARNING.value}
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
    from fpstate.command.held_output import HeldOutput, write_json
    from fpstate.command.register_report import Wanted
    from fpstate.source.open import threads_of

    layout = None if args.layout is None else _layout(args.layout)
    wanted = Wanted(
        all=args.all, names=tuple(args.register), values=not args.no_values, lane_type=args.lane_type
    )
    for name in args.register:
        register_named(name)
    opened = threads_of(args.source, cpu=_cpu(args.cpu), format=args.format, layout=layout)
    with HeldOutput(sys.stdout) as out, opened as states:
        threads = _Described(args, wanted, states)
        if args.json:
            # Without indentation json is several times as fast; programs do not need any.
            indent = 1 if sys.stdout.isatty() else None
            write_json(out, {"schema": SCHEMA, "source": args.source}, "threads", threads, indent=indent)
        else:
            from fpstate.command.render import render

            render(threads, wanted, out)
    return int(threads.grave)


class _Described:
    """The threads to show, described one by one; ``grave`` says afterwards whether something about one is wrong."""

    def __init__(self, args: argparse.Namespace, wanted: Wanted, states: Iterable[ThreadState]) -> None:
        self.grave = False
        self._args, self._wanted, self._states = args, wanted, states

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each; raises SourceError where none was chosen, RegisterError for a register that none of them has."""
        from fpstate.command.register_report import describe

        missing, known = set(self._args.register), list[str]()
        first: ThreadState | None = None
        for thread in self._states:
            if len(known) < _LISTED:
                known.append("?" if thread.tid is None else str(thread.tid))
            if self._args.thread not in (None, thread.tid):
                continue
            first = first or thread
            missing -= {name for name in missing if name in thread.image.registers}
            described = describe(thread, self._wanted, views=self._args.json)
            self.grave |= any(item["severity"] in _GRAVE for item in described["findings"])
            yield described
        if first is None:
            raise SourceError(
                self._args.source,
                f"no thread {self._args.thread}",
                help=f"threads: {', '.join(known) or 'none'}",
            )
        _refuse([name for name in self._args.register if name in missing], first)


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


def _refuse(names: list[str], thread: ThreadState) -> None:
    """Refuse a register that no thread has: no room for it, or lost by whoever wrote the source."""
    for name in names:
        components = {part.component for part in register_named(name).parts}
        for finding in thread.findings:
            if finding.component in components:
                raise RegisterError(name, f"not known. {finding.message}", help=finding.help)
        thread.image.registers.size_of(name)
