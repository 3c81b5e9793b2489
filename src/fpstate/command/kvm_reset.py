"""``fpstate kvm reset``: a dirty vCPU back in its initial configuration, seen from both sides."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fpstate.command import output
from fpstate.engine.kvm.inside import seen_inside
from fpstate.engine.kvm.reset import Survivor, reset, survivors
from fpstate.engine.kvm.session import Session
from fpstate.engine.kvm.transfer import load, save
from fpstate.errors import VsoError
from fpstate.program.block import KNOWN_FEATURES
from fpstate.program.builtin import BUILTIN
from fpstate.source.state_file import read_state

SCHEMA: Final = "fpstate-kvm-reset/1"
_RUN: Final = 1_000_000
_RUNS: Final = 1000
_FOR_EVER: Final = 1 << 60


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``reset``."""
    parser = subparsers.add_parser(
        "reset",
        help="reset a dirty vCPU, and look for what is left, from the host and from inside",
        description="Loads FILE, or lets a guest fill every register, resets the vCPU, and reads all of it back; then a"
        " guest stores what it finds in its registers. Exit code 1: something is left.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a state that is in the vCPU before")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was there and what is left. Raises UnsupportedHere, SourceError, LoadRefused, ResetIncomplete."""
    with Session() as session:
        if args.file:
            load(session.vcpu, read_state(args.file).state, destination=session.destination)
        else:
            dirty_from_inside(session)
        before = survivors(session.vcpu, destination=session.destination)
        reset(session.vcpu, destination=session.destination)
        outside = survivors(session.vcpu, destination=session.destination)
        inside = seen_inside(session)
    report = {"schema": SCHEMA, "before": _rows(before), "host": _rows(outside), "guest": _rows(inside)}
    if args.json:
        output.document(report)
    else:
        output.lines(_text(before, outside, inside))
    return int(bool(outside or inside))


def dirty_from_inside(session: Session, *, seed: int = 1) -> None:
    """Let a guest put a pattern into every register that it has, and stop it in the middle."""
    session.start(BUILTIN["canary"].load(), seed=seed, argument=_FOR_EVER)
    wanted = session.features & KNOWN_FEATURES
    for _ in range(_RUNS):  # a tick may come before the guest has begun
        session.run(_RUN)
        if not wanted & ~save(session.vcpu, destination=session.destination).image.in_use:
            return
    raise VsoError("a guest that fills every register did not get to it")


def _rows(found: Sequence[Survivor]) -> list[dict[str, Any]]:
    return [
        {"register": each.name, "part": each.part, "value": hex(each.value), "initial": hex(each.initial)}
        for each in found
    ]


def _text(before: list[Survivor], outside: list[Survivor], inside: list[Survivor]) -> Iterator[str]:
    parts: dict[str, int] = {}
    for each in before:
        parts[each.part] = parts.get(each.part, 0) + 1
    listed = ", ".join(f"{part} {number}" for part, number in parts.items())
    yield f"before: {len(before)} registers are not initial ({listed})"
    for side, found in (("the host", outside), ("the guest", inside)):
        yield f"after, as {side} sees it: {len(found)}"
        yield from (f"  {each}" for each in found)
