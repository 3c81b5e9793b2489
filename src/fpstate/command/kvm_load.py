"""``fpstate kvm load``: whole states into a vCPU, component by component, and on to the end of the program."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fpstate.arch.component import mask_names, mask_of, mask_text
from fpstate.command import output
from fpstate.command.quantity import nanoseconds
from fpstate.engine.kvm.session import Session
from fpstate.engine.kvm.transfer import LoadReport, load
from fpstate.errors import FpStateError, LoadMismatch, LoadRefused, SourceError
from fpstate.image.convert import component_number
from fpstate.program.builtin import BUILTIN
from fpstate.source.checkpoint import SavedState
from fpstate.source.state_file import read_state, state_files

SCHEMA: Final = "fpstate-kvm-load/1"


@dataclass(frozen=True)
class Loaded:
    """What became of one file: the report of its load, how its program ended, and what was wrong, if anything."""

    file: str
    verdict: str
    report: LoadReport | None = None
    program: str = ""
    result: str = ""
    error: FpStateError | None = None
    lost: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where the state was loaded and its program, if any, came to the right result."""
        if self.error is not None:
            return self.error.exit_code
        return int(self.result not in ("", "right", "not known"))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``load``."""
    parser = subparsers.add_parser(
        "load",
        help="load states into a vCPU, read them back, go on with their programs",
        description="Foretells what the kernel will do with each state, refuses what it would refuse or lose part of,"
        " loads it in the kernel's order, reads it back, and runs its program to the end. Exit code 1: refused, lost,"
        " read back otherwise, or a wrong result; 2: a file that is no whole state.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="states, or folders of states")
    parser.add_argument(
        "--allow-loss",
        metavar="NAMES",
        default="",
        help="components whose registers may be lost, with commas",
    )
    parser.add_argument("--no-run", action="store_true", help="load and read back, and do not go on")
    parser.add_argument(
        "--timeout", type=nanoseconds, default="10s", metavar="TIME", help="for each program to end (10s)"
    )
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load each file and report; the exit code is the highest that one of them has. Raises UnsupportedHere."""
    allowed = mask_of(*_components(args.allow_loss))
    limit = None if args.no_run else args.timeout / 1e9
    files = list(_files(args.files))
    with Session() as session:
        done = [load_file(session, file, allow_loss=allowed, limit=limit) for file in files]
    if args.json:
        output.document({"schema": SCHEMA, "files": [describe(each) for each in done]})
    else:
        for each in done:
            output.lines(_text(each, in_full=len(done) == 1))
        bad = sum(each.exit_code != 0 for each in done)
        output.message(f"{len(done) - bad} of {len(done)} loaded and right")
    return max((each.exit_code for each in done), default=0)


def load_file(session: Session, file: str, *, allow_loss: int = 0, limit: float | None = None) -> Loaded:
    """Load one file into the session's vCPU, and with a ``limit`` in seconds go on with its program."""
    try:
        saved = read_state(file)
    except FpStateError as error:
        return Loaded(file, "not read", error=error)
    except OSError as error:
        return Loaded(file, "not read", error=SourceError(file, error.strerror or str(error)))
    program = saved.checkpoint.program if saved.checkpoint else ""
    try:
        report = _load(session, saved, allow_loss)
    except LoadRefused as error:
        found = error.prediction
        return Loaded(file, str(found), None, program, "", error, found.lost, found.reasons)
    except LoadMismatch as error:
        found = error.report
        return Loaded(file, str(found.prediction), found, program, "", error)
    except FpStateError as error:
        return Loaded(file, "not loaded", None, program, "", error)
    verdict, reasons = str(report.prediction), report.prediction.reasons
    result = ""
    if saved.checkpoint is not None and limit is not None:
        try:
            result = _finish(session, saved, limit)
        except FpStateError as error:
            return Loaded(file, verdict, report, program, "", error)
    return Loaded(file, verdict, report, program, result, reasons=reasons)


def describe(loaded: Loaded) -> dict[str, Any]:
    """Return what became of a file as JSON-ready data."""
    report = loaded.report
    return {
        "file": loaded.file,
        "verdict": loaded.verdict,
        "loaded": report is not None and loaded.error is None,
        "lost": list(mask_names(loaded.lost)),
        "reasons": list(loaded.reasons),
        "components": []
        if report is None
        else [_component(report, index) for index in range(len(report.components))],
        "controls": []
        if report is None
        else [
            {"name": name, "wanted": hex(wanted), "found": hex(found)}
            for name, wanted, found in report.controls
        ],
        "program": loaded.program or None,
        "result": loaded.result or None,
        "error": None if loaded.error is None else str(loaded.error),
        "help": (loaded.error and loaded.error.help) or None,
    }


def _component(report: LoadReport, index: int) -> dict[str, Any]:
    each = report.components[index]
    return {
        "name": each.name,
        "action": each.action.value,
        "differences": [
            {"register": item.register, "loaded": hex(item.a), "read": hex(item.b)}
            for item in each.differences
        ],
    }


def _load(session: Session, saved: SavedState, allow_loss: int) -> LoadReport:
    if saved.checkpoint is not None:
        return session.resume(saved, allow_loss=allow_loss)
    return load(session.vcpu, saved.state, allow_loss=allow_loss, destination=session.destination)


def _finish(session: Session, saved: SavedState, limit: float) -> str:
    """Run the program to its end; ``right``, ``not known`` for programs that are not built in, or what is wrong."""
    checkpoint = saved.checkpoint
    assert checkpoint is not None
    block = session.finish(limit)
    builtin = BUILTIN.get(checkpoint.program)
    if builtin is None:
        return "not known"
    problem = builtin.check(block.result, checkpoint.seed, checkpoint.argument, checkpoint.features)
    return problem or "right"


def _components(names: str) -> Iterator[int]:
    for name in filter(None, names.split(",")):
        number = component_number(name.strip())
        if number is None:
            raise FpStateError(f"{name!r} is no component", help="fpstate cpu lists them")
        yield number


def _files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        found = state_files(path)
        if not found:
            raise FpStateError(f"{path}: no states in this folder", help="fpstate kvm save writes some")
        yield from map(str, found)


def _text(loaded: Loaded, *, in_full: bool) -> Iterator[str]:
    end = f"; {loaded.program}: {loaded.result}" if loaded.result else ""
    if loaded.error is not None:
        text = str(loaded.error)
        yield text if text.startswith(loaded.file) else f"{loaded.file}: {text}"
        if loaded.error.help:
            yield f"  try: {loaded.error.help}"
    else:
        yield f"{loaded.file}: {loaded.verdict}{end}"
    if loaded.report is None or not in_full:
        return
    state = loaded.report.after
    yield f"  XCR0 {state.xcr0:#x}, XSS {state.xss:#x}, XFD {state.xfd:#x}"
    width = max(len(each.name) for each in loaded.report.components)
    for each in loaded.report.components:
        wrong = ", ".join(item.register for item in each.differences)
        yield f"  {each.name:{width}}  {each.action.value}" + (
            f"; reads back otherwise: {wrong}" if wrong else ""
        )
    for reason in loaded.reasons:
        yield f"  {reason}"
    if loaded.lost:
        yield f"  lost: {mask_text(loaded.lost)}"
