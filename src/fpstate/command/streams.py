"""The standard streams as whoever started us left them: closed, full, or without a reader."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO, cast

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Have all three streams, and a standard error that takes everything.

    A closed stream stands for /dev/null, and its number is not given to a file that is opened later. A message that
    standard error does not take is lost, and changes no exit code.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            setattr(sys, name, _null(number, mode))
    before = sys.stderr
    sys.stderr = cast(TextIO, _Lenient(before))
    try:
        yield
    finally:
        sys.stderr = before


def abandon(stream: TextIO) -> None:
    """Let what is left in a stream go nowhere, so that its end raises nothing: what went wrong was said."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


def _null(number: int, mode: str) -> TextIO:
    file = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: the stream's, if nobody has it
    if file == number:
        os.set_inheritable(file, True)
    else:
        os.close(file)
    return cast(TextIO, open(os.devnull, mode))


class _Lenient:
    """A text stream that loses what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, if that can be."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            abandon(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flush, if that can be."""
        try:
            self._stream.flush()
        except OSError:
            abandon(self._stream)
