"""Inflating xz, gzip, bzip2 and zstd in pieces of bounded size.

Neither a small file that inflates to a large one nor one that asks for a huge dictionary takes more
memory than stated here. Formats other than these four are left to their own tools.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

from fpstate.errors import SourceError, UnsupportedHere
from fpstate.source.stream import FileStream

_INPUT: Final = 64 << 10
_PIECE: Final = 256 << 10
_DICTIONARY: Final = 256 << 20
"""Bytes of memory that a decoder may take: xz -9 needs 65 MiB, zstd --long=27 128 MiB."""
_ZSTD_MODULES: Final = ("compression.zstd", "zstandard")


def inflate(stream: FileStream, codec: str) -> Iterator[bytes]:
    """Yield what a file inflates to; raises SourceError where it is damaged or cut short.

    Raises UnsupportedHere for zstd where no library for it is installed.
    """
    if codec == "zstd":
        yield from _zstd(stream)
        return
    failures = _failures(codec)
    try:
        yield from _members(stream, codec)
    except failures as error:
        raise SourceError(stream.name, f"damaged {codec} data: {error}") from error


def _members(stream: FileStream, codec: str) -> Iterator[bytes]:
    """Inflate one member after another: all these formats may be concatenated."""
    position, pending = 0, b""
    while True:
        decoder = _decoder(codec)
        fed = False
        while not decoder.eof:
            if not pending and decoder.needs_input:
                pending = stream.read_at(position, _INPUT)
                position += len(pending)
                if not pending:
                    raise SourceError(stream.name, f"the {codec} data is cut short", offset=stream.size)
            piece = decoder.decompress(pending, _PIECE)
            pending, fed = b"", True
            if piece:
                yield piece
        pending = decoder.unused_data or stream.read_at(position, _INPUT)
        position += 0 if decoder.unused_data else len(pending)
        if not fed or not pending.lstrip(b"\0"):
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


def _decoder(codec: str) -> Any:  # noqa: ANN401 - three classes of the standard library with no common base
    if codec == "gzip":
        return _Gzip()
    if codec == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DICTIONARY)


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


def _zstd(stream: FileStream) -> Iterator[bytes]:
    library = _zstd_library()
    error_type: type[Exception] = library.ZstdError
    try:
        if library.__name__ == "zstandard":
            decoder = library.ZstdDecompressor(max_window_size=_DICTIONARY)
            source = decoder.stream_reader(_Reader(stream), read_across_frames=True)
        else:
            option = {library.DecompressionParameter.window_log_max: _DICTIONARY.bit_length() - 1}
            source = library.ZstdFile(_Reader(stream), options=option)
        while piece := source.read(_PIECE):
            yield piece
    except (error_type, EOFError) as error:
        raise SourceError(stream.name, f"damaged zstd data: {error}") from error


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
