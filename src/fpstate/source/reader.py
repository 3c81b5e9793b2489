"""The formats of files, told by how they begin: what reads each, and how long one of it may be.

A format's module is imported when a file is of that format, and has to be there only then.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from fpstate.errors import UnsupportedHere
from fpstate.source.budget import COPIED, KEPT, Budget, stored_size

if TYPE_CHECKING:
    from fpstate.arch.cpu import Cpu
    from fpstate.source.stream import Stream
    from fpstate.source.thread import ThreadState

HEAD_SIZE: Final = 64
RAW_LONGEST: Final = 1 << 20
"""Bytes of a source that are read as raw; a state with AMX has about 11 KiB."""
MESSAGE_LONGEST: Final = 1 << 20
"""Bytes of CRIU's message that are parsed; one with AVX-512 has about 8 KiB."""
STATE_LONGEST: Final = 1 << 28
"""Bytes of a guest state, its memory included."""
_WORDS: Final = 12
_OBJECTS: Final = 2 << 10
"""Bytes that Python takes for one thread around the bytes of its image."""


class Reader(NamedTuple):
    """A file format: how it may begin, and ``function(stream, *, cpu)`` of ``module``, which yields its threads.

    ``longest`` is how many bytes a source of it may have where its length is not known beforehand. ``head``, a
    function of a module where there is one, raises SourceError where the first ``HEAD_SIZE`` bytes already say no.
    """

    title: str
    beginnings: tuple[bytes, ...]
    module: str
    function: str
    longest: int
    head: tuple[str, str] | None = None

    def check_head(self, stream: Stream) -> None:
        """Raise SourceError for a stream that begins as this format does and is none that is read."""
        if self.head is not None:
            module, function = self.head
            getattr(importlib.import_module(module), function)(stream)

    def states(self, stream: Stream, cpu: Cpu | None) -> Iterable[ThreadState]:
        """Return the threads to be gone through once, with one image in memory at a time.

        Raises UnsupportedHere where the format's module is not part of this build.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise
            raise UnsupportedHere(f"{self.title}: {self.module} is not part of this build") from error
        found: Iterable[ThreadState] = getattr(module, self.function)(stream, cpu=cpu)
        return found

    def threads(self, stream: Stream, cpu: Cpu | None) -> list[ThreadState]:
        """Return all threads at once; raises as ``states`` does, and BudgetExceeded as ``listed`` does."""
        return listed(stream, self.states(stream, cpu))


READERS: Final = (
    Reader(
        "an ELF core",
        (b"\x7fELF",),
        "fpstate.source.core",
        "core_states",
        COPIED.fixed,
        ("fpstate.source.note", "check_head"),
    ),
    Reader(
        "a minidump",
        (b"MDMP",),
        "fpstate.source.minidump",
        "minidump_states",
        COPIED.fixed,
        ("fpstate.source.minidump_file", "check_head"),
    ),
    # IMG_COMMON_MAGIC or none (old images), then CORE_MAGIC: criu/include/magic.h
    Reader(
        "a CRIU core image",
        (b"\x19\x43\x56\x54\x47\x38\x05\x55", b"\x47\x38\x05\x55"),
        "fpstate.source.criu",
        "criu_threads",
        MESSAGE_LONGEST + _WORDS,
    ),
    Reader(
        "a guest state", (b"\x93FPVSO\r\n",), "fpstate.source.saved_guest", "guest_threads", STATE_LONGEST
    ),
    Reader("raw bytes", (b"",), "fpstate.source.raw", "raw_threads", RAW_LONGEST),
)
"""The formats of files, tried in order; the last takes what no other does."""
COMPRESSED: Final = {b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
"""How compressed files begin, and the tool that inflates them."""


def reader_of(stream: Stream) -> Reader:
    """Return the format that a stream begins as."""
    return reader_for(stream.read_at(0, HEAD_SIZE))


def reader_for(head: bytes) -> Reader:
    """Return the format of what begins with these bytes."""
    return next(reader for reader in READERS if head.startswith(reader.beginnings))


def longest(head: bytes, *, raw: bool = False) -> int:
    """Return how many bytes a source may have that begins so; with ``raw`` it is one state, compressed perhaps."""
    if head.startswith(tuple(COMPRESSED)):
        return 2 * RAW_LONGEST if raw else COPIED.fixed
    return RAW_LONGEST if raw else reader_for(head).longest


def listed(stream: Stream, states: Iterable[ThreadState]) -> list[ThreadState]:
    """Return states as a list; raises BudgetExceeded where that would keep too much in memory at once."""
    budget, kept = Budget(stream.name, stored_size(stream)), []
    last: object = None
    for state in states:
        if state.image is not last:  # threads without a state share one image
            budget.charge(KEPT, state.image.layout.size + _OBJECTS, lead="its threads' images are ")
        kept.append(state)
        last = state.image
    return kept
