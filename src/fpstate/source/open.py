"""Which source a name means: a process by its number, and files by how they begin (``reader.READERS``)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeGuard

from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import UnsupportedHere
from fpstate.source.reader import READERS, Reader, reader_of
from fpstate.source.stream import Stream, open_stream
from fpstate.source.thread import ThreadState

__all__ = ["READERS", "Reader", "each_thread", "is_process", "open_source", "reader_of", "threads_of"]


def open_source(
    source: str | os.PathLike[str],
    *,
    cpu: Cpu | None = None,
    format: str | None = None,
    layout: Layout | None = None,
) -> list[ThreadState]:
    """Return the state of every thread of a source: a path, ``-`` for standard input, or a process's number.

    A path object is a file whatever its name.

    ``cpu`` is the processor that made the state, for formats that do not say it themselves. With ``format`` or
    ``layout`` the bytes are raw, whatever they begin with (``raw.open_raw``). Raises OSError,
    SourceError, AmbiguousLayout, and UnsupportedHere where something is missing to read this source. All images are
    in memory at once: BudgetExceeded says where these would be too many, and ``each_thread`` does not keep any.
    """
    if is_process(source):
        return _process(int(source))
    with closing(_opened(source, raw=format is not None or layout is not None)) as stream:
        if format is not None or layout is not None:
            from fpstate.source.raw import raw_threads

            return raw_threads(stream, cpu=cpu, format=format, layout=layout)
        return reader_of(stream).threads(stream, cpu)


def each_thread(
    source: str | os.PathLike[str],
    *,
    cpu: Cpu | None = None,
    format: str | None = None,
    layout: Layout | None = None,
) -> Iterator[ThreadState]:
    """Yield the state of one thread after the other, as ``open_source`` lists them, keeping none in memory.

    The file is read on the way, so what is damaged further on is an error after the threads before it.
    """
    with threads_of(source, cpu=cpu, format=format, layout=layout) as threads:
        yield from threads


@contextmanager
def threads_of(
    source: str | os.PathLike[str],
    *,
    cpu: Cpu | None = None,
    format: str | None = None,
    layout: Layout | None = None,
) -> Iterator[Iterable[ThreadState]]:
    """Open a source whose threads can be gone through more than once: a file is then read again.

    Arguments and errors are those of ``open_source``; what is wrong with a file is raised when its threads are taken.
    """
    if is_process(source):
        yield _process(int(source))
        return
    raw = format is not None or layout is not None
    with closing(_opened(source, raw=raw)) as stream:
        yield _Threads(stream, cpu, format, layout)


@dataclass(frozen=True, slots=True)
class _Threads:
    """What a stream yields each time that it is iterated."""

    stream: Stream
    cpu: Cpu | None
    format: str | None
    layout: Layout | None

    def __iter__(self) -> Iterator[ThreadState]:
        if self.format is None and self.layout is None:
            yield from reader_of(self.stream).states(self.stream, self.cpu)
            return
        from fpstate.source.raw import raw_threads

        yield from raw_threads(self.stream, cpu=self.cpu, format=self.format, layout=self.layout)


def is_process(source: object) -> TypeGuard[str]:
    """Tell whether a source is the number of a process."""
    return isinstance(source, str) and source.isascii() and source.isdigit()


def _opened(source: str | os.PathLike[str], *, raw: bool) -> Stream:
    return open_stream(str(source) if source == "-" else os.fspath(source), raw=raw)


def _process(pid: int) -> list[ThreadState]:
    try:
        module = importlib.import_module("fpstate.source.process")
    except ImportError as error:
        raise UnsupportedHere(
            f"live processes: {error}", help="a file whose name is a number is read as ./NUMBER"
        ) from error
    states: list[ThreadState] = module.process_threads(pid)
    return states
