"""``fpstate threads``: under which rules each thread computes, and which ones are odd."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fpstate.arch import Cpu
from fpstate.arch.component import mask_text
from fpstate.command.finding_report import finding_data
from fpstate.command.held_output import HeldOutput, write_json
from fpstate.command.quantity import duration, nanoseconds
from fpstate.image import ControlWord, Mxcsr
from fpstate.source.census import Census, Odd, odd_registers, x87_depth
from fpstate.source.open import is_process, threads_of
from fpstate.source.process import Snapshot, UnreadThread, snapshot
from fpstate.source.thread import ThreadState

SCHEMA = "fpstate-threads/1"
_COLUMNS: Final = ("", "tid", "name", "MXCSR", "FCW", "x87", "PKRU", "in use", "odd")
_RIGHT: Final = (1, 5)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``threads`` to the command line."""
    parser = subparsers.add_parser(
        "threads",
        help="compare the control words of the threads of a process or a core",
        description="One line a thread: control words, x87 stack depth, protection keys, components in use."
        " Threads whose control bits differ from the majority's are marked, and the exit code is 1.",
    )
    parser.add_argument(
        "source", metavar="PID|CORE", help="a process, or the path of a core (./123 for one named 123)"
    )
    parser.add_argument("--cpu", metavar="NAME", help="the processor of the catalog that wrote the core")
    parser.add_argument(
        "--limit", type=nanoseconds, default="2s", help="how long to wait for threads to stop"
    )
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 where threads are odd or could not be read."""
    if is_process(args.source):
        live = snapshot(int(args.source), limit=args.limit / 1e9)
        report = _Report(args.source, live.threads, live)
        report.print(json=args.json)
    else:
        with threads_of(args.source, cpu=Cpu.catalog(args.cpu) if args.cpu else None) as threads:
            report = _Report(args.source, threads)
            report.print(json=args.json)
    for thread in report.unread:
        print(f"fpstate: thread {thread['tid']} {thread['name']}: {thread['reason']}", file=sys.stderr)
    return 1 if report.odd or report.unread else 0


class _Report:
    """Threads that are gone through twice, to count what most have and to print each; none is kept.

    ``threads`` are iterated anew each time. ``odd`` is how many were odd among those that were described.
    """

    def __init__(self, source: str, threads: Iterable[ThreadState], live: Snapshot | None = None) -> None:
        self.odd = self.count = 0
        self.unread = [_describe_unread(each) for each in (live.unread if live else ())]
        self._source, self._threads, self._live = source, threads, live
        self._census = Census()
        self._widths = [len(title) for title in _COLUMNS]
        self._first: ThreadState | None = None

    def print(self, *, json: bool) -> None:
        """Print everything, as JSON or as a table."""
        self._survey(measure=not json)
        with HeldOutput(sys.stdout) as out:
            if json:
                write_json(out, self._head(), "threads", self, tail=self._tail, indent=2)
                return
            out.write(_line(_COLUMNS, self._widths))
            for thread in self:
                out.write(_line(_row(thread), self._widths))
            out.write(_summary({**self._head(), **self._tail()}, self.count) + "\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield each thread described."""
        majorities = self._census.majorities()
        for index, thread in enumerate(self._threads):
            odd = odd_registers(index, thread.image, majorities)
            self.odd += bool(odd)
            self.count += 1
            yield _describe_thread(thread, odd)

    def _survey(self, *, measure: bool) -> None:
        for thread in self._threads:
            self._first = self._first or replace(thread, findings=())
            self._census.count(thread.image)
            if measure:
                cells = _row(_describe_thread(thread, ()))
                self._widths = [
                    max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=True)
                ]
        self._widths[0] = 0 if self._census.alike else 1

    def _head(self) -> dict[str, Any]:
        return _head(self._source, self._first, self._live)

    def _tail(self) -> dict[str, Any]:
        return {"odd": self.odd, "unread": self.unread}


def describe(
    source: str, threads: Sequence[ThreadState], odd: Sequence[Odd], live: Snapshot | None = None
) -> dict[str, Any]:
    """Return everything that the verb shows, as JSON-ready data; registers are hexadecimal strings."""
    by_thread: dict[int, list[Odd]] = {}
    for each in odd:
        by_thread.setdefault(each.index, []).append(each)
    return {
        **_head(source, threads[0] if threads else None, live),
        "threads": [
            _describe_thread(thread, by_thread.get(index, ())) for index, thread in enumerate(threads)
        ],
        "odd": len(by_thread),
        "unread": [_describe_unread(each) for each in (live.unread if live else ())],
    }


def _head(source: str, first: ThreadState | None, live: Snapshot | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "source": source,
        "machine": first.machine if first else None,
        "layout_source": first.image.layout_source if first else None,
        "stop_ns": round(live.stop * 1e9) if live else None,
        "longest_ns": round(live.longest * 1e9) if live else None,
    }


def _describe_thread(thread: ThreadState, odd: Sequence[Odd]) -> dict[str, Any]:
    registers, in_use = thread.image.registers, thread.image.in_use
    return {
        "tid": thread.tid,
        "name": thread.name,
        "mxcsr": _hexadecimal(registers.get("mxcsr"), 4),
        "fcw": _hexadecimal(registers.get("fctrl"), 4),
        "x87_depth": x87_depth(thread.image),
        "pkru": _hexadecimal(registers.get("pkru"), 8),
        "in_use": f"{in_use:#x}",
        "in_use_names": mask_text(in_use),
        "odd": [
            {
                **{"register": each.register, "value": f"{each.value:#x}", "majority": f"{each.majority:#x}"},
                "meaning": _meaning(each),
            }
            for each in odd
        ],
        "findings": [finding_data(finding) for finding in thread.findings],
    }


def _hexadecimal(value: int | None, digits: int) -> str | None:
    return None if value is None else f"{value:#0{digits + 2}x}"


def _describe_unread(thread: UnreadThread) -> dict[str, Any]:
    return {"tid": thread.tid, "name": thread.name, "errno": thread.error, "reason": thread.reason}


def _meaning(odd: Odd) -> str:
    """Say in words what is different: ``rounding=down, not nearest``."""
    if odd.register == "pkru":
        keys = [key for key in range(16) if (odd.value ^ odd.majority) >> 2 * key & 3]
        rights = ("read and write", "no access", "read only", "no access")
        return ", ".join(
            f"key {key}: {rights[odd.value >> 2 * key & 3]}, not {rights[odd.majority >> 2 * key & 3]}"
            for key in keys
        )
    kind = Mxcsr if odd.register == "mxcsr" else ControlWord
    mine, most = kind(odd.value), kind(odd.majority)
    changes = []
    for name in kind.field_names():
        a, b = getattr(mine, name), getattr(most, name)
        if a != b:
            changes.append(f"{name}={_word(a)}, not {_word(b)}")
    return "; ".join(changes) or f"{odd.value:#x}, not {odd.majority:#x}"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    letters = getattr(value, "letters", None)
    if letters is not None:
        return str(letters()) or "none"
    return str(getattr(value, "name", value)).lower()


def table(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that show what ``describe`` returned."""
    rows = [_COLUMNS, *(_row(thread) for thread in report["threads"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    yield from (_line(row, widths).removesuffix("\n") for row in rows)
    yield _summary(report, len(report["threads"]))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        cell.rjust(widths[column]) if column in _RIGHT else cell.ljust(widths[column])
        for column, cell in enumerate(row)
    )
    return "  ".join(cells).rstrip() + "\n"


def _summary(report: dict[str, Any], count: int) -> str:
    odd = f"{report['odd']} odd" if report["odd"] else "all alike"
    stop = f"; stood still for {duration(report['longest_ns'])}" if report["longest_ns"] else ""
    return f"{count} thread{'s' if count != 1 else ''}, {odd}; layout from: {report['layout_source']}{stop}"


def _row(thread: dict[str, Any]) -> tuple[str, ...]:
    return (
        "*" if thread["odd"] else "",
        "-" if thread["tid"] is None else str(thread["tid"]),
        "".join(letter if letter.isprintable() else "?" for letter in thread["name"]),
        thread["mxcsr"] or "-",
        thread["fcw"] or "-",
        "-" if thread["x87_depth"] is None else str(thread["x87_depth"]),
        thread["pkru"] or "-",
        thread["in_use_names"],
        "; ".join(f"{each['register']}: {each['meaning']}" for each in thread["odd"]),
    )
