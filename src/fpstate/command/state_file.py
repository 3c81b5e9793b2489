"""One state from whatever a verb is given, and states written to files that their owner alone can read."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Final

from fpstate.arch import Cpu
from fpstate.errors import SourceError
from fpstate.image import Image
from fpstate.source.open import READERS, open_source

_LONGEST: Final = 1 << 20
_CONTAINERS: Final = tuple(start for reader in READERS[:-1] for start in reader.beginnings)
"""How files begin that say themselves what is in them: cores, minidumps, CRIU images, guest states."""


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
    if not given. Raises SourceError where it holds several threads and ``thread`` names none and for bytes that are
    no such state, AmbiguousLayout where several layouts fit, and OSError.
    """
    named = source.isascii() and source.isdigit()
    data = b"" if named else _read(source)
    if named or data.startswith(_CONTAINERS):
        return _of_thread(source, cpu, thread)
    from fpstate.source.raw import open_raw

    return open_raw(data, cpu=cpu, format=format, name=source)[0].image


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


def _read(source: str) -> bytes:
    if source == "-":
        data = sys.stdin.buffer.read(_LONGEST + 1)
    else:
        with open(source, "rb") as file:
            data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST and not data.startswith(_CONTAINERS):
        raise SourceError(source, f"more than {_LONGEST} bytes are no single state")
    return data


def _of_thread(source: str, cpu: Cpu | None, wanted: int | None) -> Image:
    threads = open_source(source, cpu=cpu)
    chosen = [thread for thread in threads if wanted in (None, thread.tid)]
    if len(chosen) != 1:
        tids = ", ".join(str(thread.tid) for thread in threads[:20])
        raise SourceError(
            source, f"{len(chosen)} of its {len(threads)} threads were meant", help=f"name one of {tids}"
        )
    return chosen[0].image
