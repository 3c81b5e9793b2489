"""The bytes of a source by offset: a file, standard input, or what a compressed file inflates to.

Sizes in a file are claims. A stream gives what is there and never more than its budgets allow, so that a
reader that compares both before it allocates needs little memory, whatever the file says.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, Final, Protocol

from fpstate.errors import SourceError
from fpstate.source.budget import COPIED, INFLATED, POSITION, Budget
from fpstate.source.reader import COMPRESSED, HEAD_SIZE, longest, reader_for

INFLATED_LIMIT: Final = POSITION.fixed
"""Bytes that are inflated of a compressed source before it is refused."""
_KEPT: Final = 1 << 20
_RECENT: Final = 256 << 10
_BLOCK: Final = 512
"""Bytes of a block in ``st_blocks`` (stat(2))."""


class Stream(Protocol):
    """Bytes that can be read at any offset; ``size`` is None where the end has not been seen yet.

    One that has ``stored`` says how many bytes its file has as it is stored (``budget.stored_size``).
    """

    name: str

    @property
    def size(self) -> int | None:
        """Bytes in all, or None."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer at the end; raises SourceError where it breaks off."""

    def close(self) -> None:
        """Give the file back."""


class FileStream:
    """A regular file, read by offset and never mapped, so that one that shrinks meanwhile does no harm."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file
        status = os.fstat(file.fileno())
        self._size = status.st_size
        self.stored = min(status.st_size, status.st_blocks * _BLOCK)

    @property
    def size(self) -> int:
        """The file's size when it was opened."""
        return self._size

    def read_at(self, offset: int, size: int) -> bytes:
        """Return what the file has there."""
        if offset >= self._size or size <= 0:
            return b""
        return os.pread(self._file.fileno(), min(size, self._size - offset), offset)

    def close(self) -> None:
        """Close the file, unless it is standard input."""
        if self._file is not sys.stdin.buffer:
            self._file.close()


class MemoryStream:
    """Bytes that are in memory already."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.stored = len(data)
        self._data = data

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self._data)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return a slice."""
        return self._data[offset : offset + max(size, 0)]

    def close(self) -> None:
        """Do nothing: there is no file."""


class InflatedStream:
    """A compressed file, inflated piece by piece as far as it is asked for.

    Its beginning is kept, and so is what was inflated last: reading back to anywhere else starts over. ``budget`` has
    what was inflated so far, in all and since the last start, and refuses a file that makes its readers go back and
    forth.
    """

    def __init__(self, compressed: FileStream, codec: str, limit: int = INFLATED_LIMIT) -> None:
        self.name = compressed.name
        self.stored = compressed.stored
        self.budget = Budget.of(compressed)
        self._compressed = compressed
        self._codec = codec
        self._position = replace(POSITION, fixed=limit)
        self._in_all = replace(INFLATED, fixed=limit * (INFLATED.fixed // POSITION.fixed))
        self._head = bytearray()
        self._end: int | None = None
        self._restart()

    @property
    def size(self) -> int | None:
        """Bytes in all once the end was reached; None before."""
        return self._end

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes after inflating up to there; raises SourceError for damage and beyond the limit."""
        if size <= 0:
            return b""
        if offset + size <= len(self._head):
            return bytes(self._head[offset : offset + size])
        if offset < self._start:
            self._restart()
        found = bytearray()
        while len(found) < size:
            begin = offset + len(found) - self._start
            if begin < len(self._recent):
                found += self._recent[begin : begin + size - len(found)]
            elif not self._advance():
                break
        return bytes(found)

    def close(self) -> None:
        """Close the compressed file."""
        self._compressed.close()

    def _restart(self) -> None:
        from fpstate.source.inflate import inflate

        self._pieces: Iterator[bytes] = inflate(self._compressed, self._codec, self.budget)
        self._start, self._recent = 0, bytearray()

    def _advance(self) -> bool:
        begin = self._start + len(self._recent)
        piece = next(self._pieces, b"")
        end = begin + len(piece)
        self.budget.hold(self._position, end, offset=self._position.fixed, lead="inflates to ")
        self.budget.charge(
            self._in_all,
            len(piece),
            offset=begin,
            lead="its parts lie so that it would have to be inflated again and again: ",
        )
        if begin == len(self._head) < _KEPT:
            self._head += piece
        if not piece:
            self._end = end
        # A member can end anywhere, and whoever reads ahead of a description reads it once more.
        if (excess := len(self._recent) - _RECENT) > 0:
            del self._recent[:excess]
            self._start += excess
        self._recent += piece
        return bool(piece)


def read_exactly(stream: Stream, offset: int, size: int, what: str) -> bytes:
    """Return ``size`` bytes at ``offset``; raises SourceError that says ``what`` is cut short where they end before."""
    data = stream.read_at(offset, size)
    if len(data) != size:
        raise SourceError(
            stream.name,
            f"{what} should have {size} bytes, {len(data)} are there",
            offset=offset,
            help="the file may have been cut short",
        )
    return data


def open_stream(source: str, *, raw: bool = False) -> Stream:
    """Open a path, or standard input for ``-``, inflating xz, gzip, bzip2 and zstd; raises OSError, SourceError.

    A pipe or a device is copied first, and no further than a source may be long that begins so; ``raw`` says that it
    is a single state whatever it begins with. Raises BudgetExceeded for one that goes on. Whoever opens the stream
    closes it.
    """
    name = "standard input" if source == "-" else source
    file: BinaryIO = sys.stdin.buffer if source == "-" else open(source, "rb")  # noqa: SIM115 - the stream owns it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file = _copied(file, name, raw=raw)
    return inflated(FileStream(file, name))


def inflated(stream: FileStream, limit: int = INFLATED_LIMIT) -> Stream:
    """Return the stream itself, or what it inflates to where it begins as a compressed file does."""
    head = stream.read_at(0, HEAD_SIZE)
    for magic, codec in COMPRESSED.items():
        if head.startswith(magic):
            return InflatedStream(stream, codec, limit)
    return stream


def _copied(pipe: BinaryIO, name: str, *, raw: bool) -> BinaryIO:
    """Copy what cannot be read by offset to a file that has no name, so that nobody else can open it.

    The first bytes say how long it may be: what is no file of ours is one raw state, and soon too long for that. What
    begins as a core or a minidump and is none is refused at once.
    """
    import tempfile

    try:
        head = pipe.read(HEAD_SIZE)
        budget = Budget(name)
        if len(head) == HEAD_SIZE and not raw:
            reader_for(head).check_head(MemoryStream(head, name))
        allowed = replace(COPIED, fixed=longest(head, raw=raw))
        copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - the stream owns it
        try:
            piece = head
            while piece:
                budget.charge(allowed, len(piece), offset=allowed.fixed, lead="a pipe or device of ")
                copy.write(piece)
                piece = pipe.read(_KEPT)
            copy.flush()
        except BaseException:
            copy.close()
            raise
    finally:
        if pipe is not sys.stdin.buffer:
            pipe.close()
    return copy
