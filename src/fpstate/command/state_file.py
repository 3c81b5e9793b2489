"""One state from whatever a verb is given, and states written to files that their owner alone can read."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from fpstate.arch import Cpu
from fpstate.errors import SourceError
from fpstate.image import Image
from fpstate.image.finding import Severity
from fpstate.source.open import READERS, open_source, reader_of
from fpstate.source.stream import open_stream
from fpstate.source.thread import ThreadState

_LONGEST: Final = 1 << 20
_LISTED: Final = 20
"""Threads that an error names."""


def processor(name: str | None) -> Cpu | None:
    """Return the processor that a command line names: ``host``, one of the catalog, or none."""
    if name is None:
        return None
    return Cpu.host() if name == "host" else Cpu.catalog(name)


def read_state(
    source: str, *, cpu: Cpu | None = None, format: str | None = None, thread: int | None = None
) -> Image:
    """Return the one state that a source holds: raw bytes, ``-`` for stdin, a core, or a process's number.

    ``cpu`` made the raw bytes; ``format``, of ``raw_format.FORMATS``, is what they are, told from length and header
    if not given. Registers that the source does not know count as initial, which is said on standard error.
    Raises SourceError where it holds several threads and ``thread`` names none and for bytes that are no such
    state, AmbiguousLayout where several layouts fit, and OSError.
    """
    if source.isascii() and source.isdigit():
        return _of_thread(source, open_source(source, cpu=cpu), thread)
    with closing(open_stream(source, raw=format is not None)) as stream:
        reader = reader_of(stream)
        if reader is not READERS[-1]:
            return _of_thread(source, reader.states(stream, cpu), thread)
        data = stream.read_at(0, _LONGEST + 1)
    if len(data) > _LONGEST:
        raise SourceError(source, f"more than {_LONGEST} bytes are no single state")
    from fpstate.source.raw import open_raw

    return _known(source, open_raw(data, cpu=cpu, format=format, name=source)[0])


def write_private(target: str, data: bytes) -> None:
    """Write a whole file at once, readable by its owner alone; ``-`` is stdout.

    A file that exists is replaced only when all is written. What is no regular file (a pipe, a device) is written
    to as it is.
    """
    if target == "-":
        sys.stdout.buffer.write(data)
        return
    path = Path(target).resolve()
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(data)
        return
    from fpstate.source.durable import replace_file

    replace_file(path, data)


def _of_thread(source: str, threads: Iterable[ThreadState], wanted: int | None) -> Image:
    """Return the one thread that is meant; no more than one image is kept while the others go by."""
    chosen: ThreadState | None = None
    tids: list[str] = []
    meant = count = 0
    for thread in threads:
        count += 1
        if len(tids) < _LISTED:
            tids.append(str(thread.tid))
        if wanted in (None, thread.tid):
            meant += 1
            chosen = chosen or thread
    if chosen is None or meant != 1:
        raise SourceError(
            source, f"{meant} of its {count} threads were meant", help=f"name one of {', '.join(tids)}"
        )
    return _known(source, chosen)


def _known(source: str, thread: ThreadState) -> Image:
    """Return a thread's image, and say which registers its writer lost."""
    for finding in thread.findings:
        if finding.component is not None and finding.severity is Severity.WARNING:
            print(f"fpstate: {source}: {finding.id}: {finding.message}; taken for initial", file=sys.stderr)
    return thread.image
