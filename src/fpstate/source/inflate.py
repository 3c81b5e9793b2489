"""Inflating xz, gzip, bzip2 and zstd in pieces of bounded size.

Neither a small file that inflates to a large one nor one that asks for a huge dictionary takes more
memory than its budget, and no member costs more than its bytes. Formats other than these four are left to their own
tools.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

from fpstate.errors import SourceError, UnsupportedHere
from fpstate.source.budget import MEMBERS, WINDOW, Budget
from fpstate.source.stream import FileStream

_FIRST: Final = 512
_INPUT: Final = 64 << 10
_PIECE: Final = 256 << 10
_LARGEST: Final = WINDOW.most or 0
"""Bytes of memory that a decoder may claim at all: xz -9 claims 65 MiB, zstd --long=27 128 MiB."""
_ZSTD_MODULES: Final = ("compression.zstd", "zstandard")
_MEMORY: Final = "memory"
"""What liblzma and libzstd call it: "Memory usage limit exceeded", "Frame requires too much memory"."""


class _WindowTooLargeError(Exception):
    """A decoder needs more memory than it was given."""


def inflate(stream: FileStream, codec: str, budget: Budget) -> Iterator[bytes]:
    """Yield what a file inflates to; raises SourceError where it is damaged or cut short.

    A decoder fills of its dictionary no more than it has inflated. So one that asks for a larger dictionary than the
    file's budget has it all the same, as long as it inflates no more than that. Raises BudgetExceeded for more, and
    for too many members; UnsupportedHere for zstd where no library for it is installed.
    """
    allowed, done = budget.allowed(WINDOW), 0
    try:
        for piece in _pieces(stream, codec, budget, allowed):
            done += len(piece)
            yield piece
        return
    except _WindowTooLargeError:
        pass
    filled, lead = 0, "its decoder needs memory: "
    try:
        budget.hold(WINDOW, done, offset=0, lead=lead)
        for piece in _pieces(stream, codec, budget, _LARGEST):
            filled += len(piece)
            if filled > done:
                budget.hold(WINDOW, filled, offset=0, lead=lead)
                yield piece[max(0, done - (filled - len(piece))) :]
    except _WindowTooLargeError:
        budget.hold(WINDOW, _LARGEST + 1, offset=0, lead=lead)


def _pieces(stream: FileStream, codec: str, budget: Budget, memory: int) -> Iterator[bytes]:
    if codec == "zstd":
        yield from _zstd(stream, memory)
        return
    failures = _failures(codec)
    try:
        yield from _members(stream, codec, budget, memory)
    except failures as error:
        raise _failure(stream, codec, error) from error


def _failure(stream: FileStream, codec: str, error: Exception) -> Exception:
    if _MEMORY in str(error).casefold():
        return _WindowTooLargeError()
    return SourceError(stream.name, f"damaged {codec} data: {error}")


class _Input:
    """The bytes of a file in order, some of which may be handed back."""

    def __init__(self, stream: FileStream) -> None:
        self._stream, self._next = stream, 0
        self._chunk, self._at = b"", 0

    @property
    def position(self) -> int:
        """Where in the file the next byte lies."""
        return self._next - len(self._chunk) + self._at

    def take(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        if self._at == len(self._chunk):
            self._chunk, self._at = self._stream.read_at(self._next, _INPUT), 0
            self._next += len(self._chunk)
        taken = self._chunk[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def give_back(self, size: int) -> None:
        """Hand back the last bytes of what was taken last."""
        self._at -= size

    def at_end(self) -> bool:
        """Tell whether nothing but padding follows: zeros, as far as one chunk goes."""
        if self._at == len(self._chunk):
            self.give_back(len(self.take(1)))
        if self._at == len(self._chunk):
            return True
        return not (self._chunk[self._at] or self._chunk[self._at :].strip(b"\0"))


def _members(stream: FileStream, codec: str, budget: Budget, memory: int) -> Iterator[bytes]:
    """Inflate one member after another: all these formats may be concatenated.

    A decoder hands back what it did not need of its input. So it is fed little at first and more as it goes on: with
    64 KiB each, a file of empty members would be copied a thousand times over.
    """
    source, members = _Input(stream), 0
    while True:
        members += 1
        budget.hold(MEMBERS, members, offset=source.position)
        decoder, size = _decoder(codec, memory), _FIRST
        while not decoder.eof:
            fed = b""
            if decoder.needs_input:
                fed, size = source.take(size), min(2 * size, _INPUT)
                if not fed:
                    raise SourceError(stream.name, f"the {codec} data is cut short", offset=stream.size)
            piece = decoder.decompress(fed, _PIECE)
            if piece:
                yield piece
        source.give_back(len(decoder.unused_data))
        if source.at_end():
            return


class _Gzip:
    """zlib's decoder with the manners of lzma's and bz2's."""

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(wbits=31)
        self._rest = b""

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, size)


def _decoder(codec: str, memory: int) -> Any:  # noqa: ANN401 - three classes of the standard library with no common base
    if codec == "gzip":
        return _Gzip()
    if codec == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=memory)


def _failures(codec: str) -> tuple[type[Exception], ...]:
    if codec == "xz":
        import lzma

        return (lzma.LZMAError, EOFError, ValueError)
    import zlib

    return (zlib.error, OSError, EOFError, ValueError)


class _Reader:
    """A stream as the file object that zstd libraries read from."""

    def __init__(self, stream: FileStream) -> None:
        self._stream, self._position = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read_at(self._position, _INPUT if size < 0 else size)
        self._position += len(data)
        return data


def _zstd(stream: FileStream, memory: int) -> Iterator[bytes]:
    library = _zstd_library()
    error_type: type[Exception] = library.ZstdError
    try:
        if library.__name__ == "zstandard":
            decoder = library.ZstdDecompressor(max_window_size=memory)
            source = decoder.stream_reader(_Reader(stream), read_across_frames=True)
        else:
            option = {library.DecompressionParameter.window_log_max: memory.bit_length() - 1}
            source = library.ZstdFile(_Reader(stream), options=option)
        while piece := source.read(_PIECE):
            yield piece
    except (error_type, EOFError) as error:
        raise _failure(stream, "zstd", error) from error


def _zstd_library() -> ModuleType:
    for name in _ZSTD_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UnsupportedHere(
        "zstd: no Python library for it is installed",
        help="pip install 'fpstate[zstd]' (the package zstandard), or inflate the file first: zstd -d",
    )
