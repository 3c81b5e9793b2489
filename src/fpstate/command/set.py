"""``fpstate set``: write registers of one live thread, and read back that it worked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

from fpstate.command import output
from fpstate.command.quantity import duration, nanoseconds
from fpstate.command.tile_report import different_rows, is_tile
from fpstate.errors import FpStateError, NumberError, RegisterError, SourceError
from fpstate.image import LANES, Float80, Registers
from fpstate.image.register import register_named
from fpstate.source.process import thread_ids
from fpstate.source.process_number import check_number
from fpstate.source.rewrite import Rewrite, rewrite

SCHEMA = "fpstate-set/1"
_FORMS: Final = (
    "values: an integer (0x1f80, 8064, -1); lanes, lowest first (f32:1.0,2.0,...); bits:0x... for raw bits;"
    " for st0 to st7 a number (1.5, 0x1.8p+1, inf, qnan(0x0))"
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``set`` to the command line."""
    parser = subparsers.add_parser(
        "set",
        help="write registers of a live thread and read them back",
        description=f"Write registers of one thread of a live process, all or none, in the order given. {_FORMS}",
    )
    parser.add_argument("pid", type=int, metavar="PID", help="a process")
    parser.add_argument("assignments", nargs="+", metavar="REGISTER=VALUE", help="what to write")
    parser.add_argument("--thread", type=int, metavar="TID", help="the thread (default: the one that leads)")
    parser.add_argument("--limit", type=nanoseconds, default="2s", help="how long to wait for it to stop")
    parser.add_argument(
        "--force", action="store_true", help="write values that are bound to end the thread, too"
    )
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write, read back, and print each register before and after."""
    wanted = [parse_assignment(text) for text in args.assignments]
    for number in (args.pid, args.thread):
        if number is not None:
            check_number(number)
    threads = thread_ids(args.pid)
    tid = args.pid if args.thread is None else args.thread
    if threads and tid not in threads:
        known = ", ".join(map(str, threads[:8])) + (", ..." if len(threads) > 8 else "")
        raise SourceError(f"process {args.pid}", f"no thread {tid}", help=f"its threads: {known}")
    done = rewrite(tid, lambda registers: assign(registers, wanted), limit=args.limit / 1e9, force=args.force)
    report = describe(args.pid, done, [name for name, _ in wanted])
    if args.json:
        output.document(report)
    else:
        for each in report["registers"]:
            output.lines(_lines(each))
        output.message(f"thread {tid}: written and read back; stood still for {duration(done.stop * 1e9)}")
        for note in done.notes:
            output.message(f"fpstate: note: {note}")
    return 0


def describe(pid: int, done: Rewrite, names: list[str]) -> dict[str, Any]:
    """Return what was done, as JSON-ready data."""
    return {
        "schema": SCHEMA,
        "pid": pid,
        "tid": done.tid,
        "stop_ns": round(done.stop * 1e9),
        "registers": [
            {
                "name": name,
                "before": _shown(name, done.before.registers[name]),
                "after": _shown(name, done.after.registers[name]),
            }
            for name in dict.fromkeys(names)
        ],
        "notes": list(done.notes),
    }


def _lines(register: dict[str, Any]) -> Iterator[str]:
    """Yield a register before and after, a tile by those rows that have changed."""
    name, before, after = register["name"], register["before"], register["after"]
    if not is_tile(name):
        yield f"{name:8} {before} -> {after}"
        return
    rows = list(different_rows(int(before, 16), int(after, 16)))
    yield from (f"{f'{name} row {row}':12} {old} -> {new}" for row, old, new in rows)
    if not rows:
        yield f"{name:8} is what it was"


def assign(registers: Registers, wanted: list[tuple[str, int]]) -> None:
    """Assign in order; raises RegisterError where a later assignment would change an earlier one."""
    for name, value in wanted:
        registers[name] = value
    for name, value in wanted:
        if registers[name] != value:
            raise RegisterError(
                name,
                f"a later assignment changes it from {value:#x} to {registers[name]:#x}",
                help="name each bit once: zmm3 holds ymm3 and xmm3; mm0 to mm7 and ftag share with st0 to st7",
            )


def parse_assignment(text: str) -> tuple[str, int]:
    """Read ``REGISTER=VALUE``; raises RegisterError for a register that does not exist or a value that is none."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise FpStateError(f"{text!r} is no REGISTER=VALUE", help=_FORMS)
    register = register_named(name)
    try:
        return name, parse_value(register.name, register.size, value.strip())
    except NumberError as error:
        raise RegisterError(name, str(error), help=error.help or _FORMS) from error


def parse_value(name: str, size: int, text: str) -> int:
    """Return the bits of a value for a register of ``size`` bytes; raises NumberError."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "bits":
        return _integer(rest, size)
    if colon and kind in LANES:
        from fpstate.image.lane import join

        return join([_number(lane, kind) for lane in rest.split(",")], size, kind)
    if name.startswith("st"):
        return int(Float80.parse(text))
    return _integer(text, size)


def _number(text: str, kind: str) -> int | float:
    try:
        if not kind.startswith(("f", "bf")):
            return int(text, 0)
        return float.fromhex(text) if "0x" in text.lower() else float(text)
    except (ValueError, OverflowError) as error:
        raise NumberError(f"{text!r} is no {kind}", help=_FORMS) from error


def _integer(text: str, size: int) -> int:
    try:
        value = int(text, 0)
    except ValueError as error:
        raise NumberError(f"{text!r} is no integer", help=_FORMS) from error
    if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
        raise NumberError(f"{text} does not fit {8 * size} bits")
    return value & (1 << 8 * size) - 1


def _shown(name: str, value: int) -> str:
    size = register_named(name).size
    text = f"{value:#0{2 * size + 2}x}"
    return f"{text} ({Float80(value)})" if register_named(name).name.startswith("st") else text
