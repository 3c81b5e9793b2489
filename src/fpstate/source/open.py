"""Which source a name means: a process by its number, and files by how they begin.

A format is a row of ``READERS``. Its module is imported when a file is of that format, and has to be there
only then.
"""

from __future__ import annotations

import importlib
import os
from contextlib import closing
from typing import Final, NamedTuple

from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import UnsupportedHere
from fpstate.source.process_number import process_number
from fpstate.source.stream import Stream, open_stream
from fpstate.source.thread import ThreadState

_HEAD_SIZE: Final = 64


class Reader(NamedTuple):
    """A file format: how it may begin, and ``function(stream, *, cpu)`` of ``module``, which lists its threads."""

    title: str
    beginnings: tuple[bytes, ...]
    module: str
    function: str

    def threads(self, stream: Stream, cpu: Cpu | None) -> list[ThreadState]:
        """Read a stream; raises UnsupportedHere where the format's module is not part of this build."""
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise
            raise UnsupportedHere(f"{self.title}: {self.module} is not part of this build") from error
        states: list[ThreadState] = getattr(module, self.function)(stream, cpu=cpu)
        return states


READERS: Final = (
    Reader("an ELF core", (b"\x7fELF",), "fpstate.source.core", "core_threads"),
    Reader("a minidump", (b"MDMP",), "fpstate.source.minidump", "minidump_threads"),
    # IMG_COMMON_MAGIC or none (old images), then CORE_MAGIC: criu/include/magic.h
    Reader(
        "a CRIU core image",
        (b"\x19\x43\x56\x54\x47\x38\x05\x55", b"\x47\x38\x05\x55"),
        "fpstate.source.criu",
        "criu_threads",
    ),
    Reader("a guest state", (b"\x93FPVSO\r\n",), "fpstate.source.saved_guest", "guest_threads"),
    Reader("raw bytes", (b"",), "fpstate.source.raw", "raw_threads"),
)
"""The formats of files, tried in order; the last takes what no other does."""


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
    SourceError, AmbiguousLayout, and UnsupportedHere where something is missing to read this source.
    """
    if isinstance(source, str) and (pid := process_number(source)) is not None:
        return _process(pid)
    stream = open_stream(str(source) if source == "-" else os.fspath(source))
    with closing(stream):
        if format is not None or layout is not None:
            from fpstate.source.raw import raw_threads

            return raw_threads(stream, cpu=cpu, format=format, layout=layout)
        return reader_of(stream).threads(stream, cpu)


def reader_of(stream: Stream) -> Reader:
    """Return the format that a stream begins as."""
    head = stream.read_at(0, _HEAD_SIZE)
    return next(reader for reader in READERS if head.startswith(reader.beginnings))


def _process(pid: int) -> list[ThreadState]:
    try:
        module = importlib.import_module("fpstate.source.process")
    except ImportError as error:
        raise UnsupportedHere(
            f"live processes: {error}", help="a file whose name is a number is read as ./NUMBER"
        ) from error
    states: list[ThreadState] = module.process_threads(pid)
    return states
