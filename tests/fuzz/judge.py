"""Whether one run of the command kept its promises: its answer, its output, memory, time, and work on the way.

Memory is the high-water mark of the resident set, which Linux resets for a process that asks. Time is the
process's own, and finds what hangs; what is linear is counted in bytes instead, which no load changes.
"""

from __future__ import annotations

import ctypes
import io
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fpstate.source import inflate, stream

MEMORY: Final = 64 << 20
"""Bytes that any file may take, and ``PER_BYTE`` for each of its own: the promise of docs/sources.md."""
PER_BYTE: Final = 4
_INTERPRETER: Final = 24 << 20
"""What ``fpstate show`` takes for no file at all: it is part of the promise, and not of what is measured here."""
_READ_SLACK, _READ_PER_BYTE = 16 << 20, 16
_INFLATED_SLACK, _PASSES = 64 << 20, 4
_SECONDS, _SECONDS_PER_BYTE = 4.0, 100e-6
_HANG: Final = 30.0
_SPACE: Final = 1 << 30
"""Address space beyond the promise before the kernel gives no more."""
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_OUT_OF_MEMORY: Final = "fpstate: out of memory"
_ERRNO: Final = re.compile(r"^fpstate: \[Errno", re.MULTILINE)
_OURS: Final = re.compile(r"^(fpstate: |usage: )", re.MULTILINE)
_KEPT: Final = 1 << 20


class OutOfTimeError(BaseException):
    """The processor time for a run is used up; no ``except Exception`` takes it."""


@dataclass(frozen=True, slots=True)
class Break:
    """A promise that was broken: ``kind`` is which, ``where`` tells it from others of its kind."""

    kind: str
    where: str
    text: str

    @property
    def key(self) -> str:
        """The same for the same fault."""
        return f"{self.kind}: {self.where}"


@dataclass(slots=True)
class Work:
    """Bytes that readers asked for, and those that were inflated on the way: in all, and in the longest pass."""

    read: int = 0
    inflated: int = 0
    longest: int = 0


@dataclass(slots=True)
class Run:
    """What one run did; ``memory`` in bytes above what there was before, ``seconds`` of processor time."""

    code: int | None = None
    out: str = ""
    err: str = ""
    memory: int = 0
    seconds: float = 0.0
    work: Work = field(default_factory=Work)
    breaks: list[Break] = field(default_factory=list)


class _Sink(io.TextIOBase):
    """Standard output that keeps the beginning, and the first thing in it that a terminal would obey."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.control: str | None = None

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.control is None and (found := _CONTROL.search(text)):
            self.control = text[max(0, found.start() - 20) : found.end() + 20]
        if self.length < _KEPT:
            self.parts.append(text[: _KEPT - self.length])
        self.length += len(text)
        return len(text)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def whole(self) -> bool:
        return self.length <= _KEPT


class Judge:
    """Runs calls and judges them; ``size`` is that of the file that they read.

    Use ``with``: readers are counted inside, and the signal for what hangs is the judge's.
    """

    def __init__(self, *, hang: float = _HANG) -> None:
        self._hang = hang
        self._work = Work()
        self._trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)

    def __enter__(self) -> Judge:
        self._read_file, self._read_memory = stream.FileStream.read_at, stream.MemoryStream.read_at
        self._inflate = inflate.inflate
        self._earlier = signal.signal(signal.SIGPROF, _out_of_time)
        stream.FileStream.read_at = self._counted(self._read_file)  # type: ignore[method-assign]
        inflate.inflate = self._counted_pieces
        return self

    def __exit__(self, *_: object) -> None:
        stream.FileStream.read_at = self._read_file  # type: ignore[method-assign]
        inflate.inflate = self._inflate
        signal.signal(signal.SIGPROF, self._earlier)

    def run(self, call: Callable[[], int], size: int, what: str) -> Run:
        """Make one call, which returns an exit code; ``what`` names it in breaks."""
        run, out, err = Run(), _Sink(), _Sink()
        self._work = run.work
        before = _settled(self._trim)
        started = time.process_time()
        with _space(PER_BYTE * size), redirect_stdout(out), redirect_stderr(err):
            run.breaks += self._answer(call, run, what)
        run.seconds = time.process_time() - started
        run.memory = max(0, _high_water() - before)
        run.out, run.err = out.text, err.text
        run.breaks += _said(run, out, err, what)
        run.breaks += _taken(run, size, what)
        return run

    def _answer(self, call: Callable[[], int], run: Run, what: str) -> Iterator[Break]:
        signal.setitimer(signal.ITIMER_PROF, self._hang)
        try:
            run.code = call()
        except SystemExit as end:
            run.code = end.code if isinstance(end.code, int) else 2
        except OutOfTimeError as error:
            yield Break(
                "time", f"{what} {_place(error)}", f"no end after {self._hang:.0f} s of processor time"
            )
        except MemoryError as error:
            yield Break(
                "memory", what, f"more address space than {_SPACE} bytes beyond the promise: {_place(error)}"
            )
        except BaseException as error:
            text = f"{type(error).__name__}: {str(error)[:200]}"
            yield Break("exception", f"{type(error).__name__} at {_place(error)}", f"{what}: {text}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _counted(self, read_at: Callable[[Any, int, int], bytes]) -> Callable[[Any, int, int], bytes]:
        def counted(self_: Any, offset: int, size: int) -> bytes:
            data = read_at(self_, offset, size)
            self._work.read += len(data)
            return data

        return counted

    def _counted_pieces(self, *asked: Any) -> Iterator[bytes]:
        work, this = self._work, 0
        for piece in self._inflate(*asked):
            work.inflated += len(piece)
            this += len(piece)
            work.longest = max(work.longest, this)
            yield piece


def _said(run: Run, out: _Sink, err: _Sink, what: str) -> Iterator[Break]:
    """Judge exit code and output."""
    if run.breaks:
        return
    if run.code not in range(5):
        yield Break("exit code", what, f"{run.code}")
    elif run.code >= 2 and not _OURS.search(run.err):
        yield Break("silence", what, f"exit code {run.code} without a message")
    if _OUT_OF_MEMORY in run.err:  # the command says so and ends well; but no file may bring it there
        yield Break("memory", what, f"more address space than {_SPACE} bytes beyond the promise")
    if _ERRNO.search(run.err):
        yield Break("errno", what, f"an error that is not ours: {run.err[:200]!r}")
    for sink, name in ((out, "standard output"), (err, "standard error")):
        if sink.control is not None:
            yield Break("control characters", f"{what} on {name}", repr(sink.control))


def _taken(run: Run, size: int, what: str) -> Iterator[Break]:
    """Judge memory, time and work against what a file of this size may take."""
    work = run.work
    if run.memory > MEMORY - _INTERPRETER + PER_BYTE * size:
        yield Break("memory", what, f"{run.memory >> 20} MiB for a file of {size} bytes")
    reach = max(size, work.longest)
    if work.read > _READ_SLACK + _READ_PER_BYTE * reach:
        yield Break("reading", what, f"{work.read} bytes read of {reach}")
    if work.inflated > _INFLATED_SLACK + _PASSES * work.longest:
        yield Break(
            "inflating", what, f"{work.inflated} bytes inflated where the longest pass has {work.longest}"
        )
    allowed = _SECONDS + _SECONDS_PER_BYTE * min(reach, size + _READ_SLACK)
    if run.seconds > allowed and not any(each.kind == "time" for each in run.breaks):
        yield Break("time", what, f"{run.seconds:.1f} s of processor time, {allowed:.1f} s for {size} bytes")


def _out_of_time(*_: object) -> None:
    raise OutOfTimeError


def _place(error: BaseException) -> str:
    """Return the innermost place in the project's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "fpstate" in Path(frame.filename).parts] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


@contextmanager
def _space(more: int) -> Iterator[None]:
    """Let the process have no more address space than it has, the promise, and ``more``: then MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    limit = size + MEMORY + more + _SPACE
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _settled(trim: Callable[[int], Any]) -> int:
    """Give back what is free, start a new high-water mark, and return the resident set in bytes."""
    trim(0)
    with open("/proc/self/clear_refs", "wb") as file:
        file.write(b"5")
    return _high_water()


def _high_water() -> int:
    """Return the high-water mark of the resident set since it was reset, in bytes."""
    with open("/proc/self/status", "rb") as file:
        found = re.search(rb"^VmHWM:\s+(\d+) kB", file.read(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


assert sys.platform == "linux"
