"""One input through every verb: what is asked of it, and what has to be true of what is written."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from grammar.kinds import Made
from grammar.states import standard
from judge import Break, Judge, Run

from fpstate.command import main as command
from fpstate.command.main import main
from fpstate.engine.memory import GuestMemory
from fpstate.errors import FpStateError
from fpstate.program import Program
from fpstate.program.block import Block
from fpstate.source.state_file import encode, read_state

_MEMORY: Final = Path("/dev/shm")
_BEFORE: Final = b"what was there before"
_GUEST: Final = 1 << 20
_LOADED_BY: Final = {"std": "xrstor", "compacted": "xrstors", "fxsave": "prxfpreg", "fsave": "fsave"}
"""Who has to take what convert writes, by format."""
_COMPRESSED: Final = (b"\xfd7zXZ\0", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd")
_KEPT: Final = ("XS009", "XS019")
"""Rules for what convert keeps because it was there: components that Linux does not enable, such as PT, and values of
shadow-stack registers that no XRSTORS loads. Registers keep their values; check says so of both images."""


@dataclass(slots=True)
class Outcome:
    """What came of an input: how often each verb ended with each code, the worst of all, and the breaks."""

    codes: dict[tuple[str, int | None], int] = field(default_factory=dict)
    memory: int = 0
    seconds: float = 0.0
    inflated: int = 0
    breaks: list[Break] = field(default_factory=list)

    def add(self, verb: str, run: Run) -> None:
        """Count one run in."""
        self.codes[verb, run.code] = self.codes.get((verb, run.code), 0) + 1
        self.memory = max(self.memory, run.memory)
        self.seconds = max(self.seconds, run.seconds)
        self.inflated = max(self.inflated, run.work.inflated)
        self.breaks += run.breaks


class Trial:
    """Runs inputs in a folder of its own, in memory where there is such; use ``with``."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __enter__(self) -> Trial:
        place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        # A parser takes a good part of a run to build, and no file has a say in it.
        self._parser = command._parser
        command._parser = _remembered(self._parser)
        self._held = tempfile.TemporaryDirectory(prefix="fpstate-fuzz-", dir=place)
        # Names without the folder's, which is another each time: a search learns from what names are compared with.
        self._before = os.getcwd()
        os.chdir(self._held.name)
        self.folder = Path()
        (self.folder / "state.bin").write_bytes(bytes(512) + (3).to_bytes(8, "little") + bytes(1920))
        (self.folder / "other.bin").write_bytes(bytes(512) + (3).to_bytes(8, "little") + bytes(312))
        return self

    def __exit__(self, *_: object) -> None:
        command._parser = self._parser
        os.chdir(self._before)
        self._held.cleanup()

    def run(self, made: Made) -> Outcome:
        """Run every verb that takes such an input."""
        path = self.folder / made.name
        path.write_bytes(made.data)
        outcome = Outcome()
        for verb, call in self._calls(made, str(path)):
            outcome.add(verb, self._judge.run(call, len(made.data), verb))
        if made.kind not in ("layout", "program"):
            outcome.breaks += self._fixed(made, str(path), outcome)
            outcome.breaks += self._converted(made, str(path), outcome)
        path.unlink()
        outcome.breaks += self._left_behind()
        return outcome

    def _calls(self, made: Made, path: str) -> Iterator[tuple[str, Callable[[], int]]]:
        cpu = [] if made.cpu is None else ["--cpu", made.cpu]
        format = [] if made.format is None else ["--format", made.format]
        as_json = ["--json"] if made.json else []
        if made.kind == "program":
            yield "program", lambda: _place_program(path)
            return
        if made.kind == "layout":
            state = str(self.folder / "state.bin")
            yield "show", lambda: main(["show", state, "--layout", path, *as_json])
            return
        if made.name.endswith(".fpvso"):
            yield "state file", lambda: _read_state(path)
        shown = ["--as", made.lane_type, *(["--all"] if made.lane_type == "hex" else [])]
        other = str(self.folder / "other.bin")
        maker = [] if made.cpu is None else ["--from-cpu", made.cpu]
        thread = _thread(made)
        yield "show", lambda: _parsed(["show", path, *cpu, *format, *shown], as_json)
        yield "threads", lambda: _parsed(["threads", path, *cpu], as_json)
        yield "check", lambda: _parsed(["check", path, "--cpu", made.to_cpu, *maker, *thread], as_json)
        cpus = ["--cpu", made.cpu, "--cpu", "haswell"] if made.cpu else []
        one = [path, path, *thread] if thread else [path, other, *cpus]
        yield "diff", lambda: _parsed(["diff", *one], as_json)

    def _fixed(self, made: Made, path: str, outcome: Outcome) -> Iterator[Break]:
        """What ``check --fix`` writes is taken by whom it was written for."""
        target = ["--for", made.consumer, "--cpu", made.to_cpu, "--amx" if made.amx else "--no-amx"]
        maker = [] if made.cpu is None else ["--from-cpu", made.cpu]
        out = self._target(made)
        fix = ["--fix", str(out), "--leftovers", made.leftovers]
        asked = ["check", path, *fix, *target, *maker, *_thread(made)]
        run = self._judge.run(lambda: main(asked), len(made.data), "check --fix")
        outcome.add("check --fix", run)
        written = yield from self._written(out, run, "check --fix")
        if written and run.code in (0, 1) and not _begins_otherwise(written):
            judged = self._judge.run(
                lambda: main(["check", str(out), *target]), len(written), "check of fixed"
            )
            yield from judged.breaks
            if judged.code != 0:
                yield Break("fix", f"{made.consumer} {_rule(judged)}", f"still refused: {judged.out[:300]}")

    def _converted(self, made: Made, path: str, outcome: Outcome) -> Iterator[Break]:
        """What ``convert`` writes is taken by its target, and has the registers that went in."""
        out = self._target(made)
        maker = [] if made.cpu is None else ["--from-cpu", made.cpu]
        format = [] if made.format is None else ["--from-format", made.format]
        target = ["--to-cpu", made.to_cpu, "--to-format", made.to_format]
        asked = ["convert", path, str(out), *target, *maker, *format, *_thread(made)]
        run = self._judge.run(lambda: main(asked), len(made.data), "convert")
        outcome.add("convert", run)
        written = yield from self._written(out, run, "convert")
        if not written or run.code != 0 or _begins_otherwise(written):
            return
        shown = ["show", str(out), "--cpu", made.to_cpu, "--format", made.to_format]
        judged = self._judge.run(lambda: main(shown), len(written), "show of converted")
        yield from judged.breaks
        if judged.code not in (0, 1):
            yield Break("convert", f"show {made.to_format}", f"cannot be read back: {judged.err[:300]}")
        if made.to_format == "std" and len(written) != standard(made.to_cpu).size:
            yield Break("convert", "size", f"{len(written)} bytes for {made.to_cpu}")
        yield from self._same(made, path, str(out), run)
        taker = ["check", str(out), "--for", _LOADED_BY[made.to_format], "--cpu", made.to_cpu, "--amx"]
        judged = self._judge.run(lambda: main(taker), len(written), "check of converted")
        yield from judged.breaks
        if judged.code != 0 and _rule(judged) not in _KEPT:
            yield Break("convert", f"{made.to_format} {_rule(judged)}", f"refused: {judged.out[:300]}")

    def _same(self, made: Made, path: str, out: str, converted: Run) -> Iterator[Break]:
        """Where nothing was lost or changed, the registers are those that went in."""
        if made.cpu is None or made.to_format != "std" or made.format or made.thread or converted.err:
            return
        asked = ["diff", path, out, "--cpu", made.cpu, "--cpu", made.to_cpu]
        judged = self._judge.run(lambda: main(asked), len(made.data), "diff of converted")
        yield from judged.breaks
        if judged.code != 0:
            yield Break("convert", "registers", f"differ: {judged.out[:200]} {judged.err[:200]}")

    def _target(self, made: Made) -> Path:
        """A name to write to, that stands for another file already or for none."""
        out = self.folder / "out.bin"
        if made.json:
            out.write_bytes(_BEFORE)
        else:
            out.unlink(missing_ok=True)
        return out

    def _written(self, out: Path, run: Run, what: str) -> Iterator[Break]:
        """Judge the file that a verb should have written as a whole or left alone; return its bytes."""
        found = out.read_bytes() if out.exists() else None
        if run.code is not None and run.code >= 2 and found not in (None, _BEFORE):
            yield Break(
                "half-written", what, f"exit code {run.code}, and {len(found or b'')} bytes were written"
            )
        return None if found in (None, _BEFORE) else found

    def _left_behind(self) -> Iterator[Break]:
        expected = {"state.bin", "other.bin", "out.bin"}
        for name in sorted({path.name for path in self.folder.iterdir()} - expected):
            (self.folder / name).unlink()
            yield Break("left behind", "file", name)


def _remembered(
    parser: Callable[[Sequence[str]], ArgumentParser],
) -> Callable[[Sequence[str]], ArgumentParser]:
    by_verb = cache(lambda verb: parser([verb]))
    return lambda asked: by_verb(asked[0])


def _thread(made: Made) -> list[str]:
    return [] if made.thread is None else ["--thread", str(made.thread)]


def _begins_otherwise(data: bytes) -> bool:
    """Tell whether an image's first bytes, FCW and FSW, are how compressed files begin: it is read as one then."""
    return data.startswith(_COMPRESSED)


def _rule(run: Run) -> str:
    """The first rule that a check names, or its error without what differs from file to file."""
    words = run.out.split()
    return next((word for word in words if word[:2] == "XS" and word[2:5].isdigit()), run.err[-60:])


def _parsed(asked: list[str], as_json: list[str]) -> int:
    """Run a verb; what it prints as JSON has to be JSON."""
    code = main([*asked, *as_json])
    sink = sys.stdout
    if as_json and code < 2 and getattr(sink, "whole", False):
        json.loads(sink.text)  # type: ignore[attr-defined]
    return code


def _place_program(path: str) -> int:
    """Load a guest program and place it in a guest's memory, as far as running it."""
    try:
        program = Program.from_file(path)
        GuestMemory.place(program, Block(), _GUEST)
    except FpStateError as error:
        return _told(error)
    return 0


def _read_state(path: str) -> int:
    """Read a guest state, hold it to what is whole, and write it again: the same comes back."""
    try:
        saved = read_state(path)
        found = saved.state.findings()
    except FpStateError as error:
        return _told(error)
    if encode(saved) and found:
        return 1
    return 0


def _told(error: FpStateError) -> int:
    """Say it as the command does, which makes what it prints printable."""
    print(f"fpstate: {str(error)!a}", file=sys.stderr)
    return error.exit_code
