"""The one way out of every verb: nothing that a file or a process says reaches a terminal as it is.

Lines of text go through ``lines`` and ``message``, which know where a line ends and so let no name end one. Below
them the standard streams themselves are cleaned for as long as a verb runs, for whatever else may write to them. What
draws with rich gets a console that cleans the texts it is given and writes its own sequences past that.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TextIO, TypeVar, cast

from fpstate.printable import printable, printable_lines

if TYPE_CHECKING:
    from _typeshed import SupportsWrite
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")


def lines(texts: Iterable[str], *, file: SupportsWrite[str] | None = None) -> None:
    """Print lines to standard output, or a ``file``, each printable and in one line."""
    for text in texts:
        print(printable(text), file=file)


def message(text: str) -> None:
    """Print one line to standard error, if that is open."""
    if sys.stderr is not None:
        lines([text], file=sys.stderr)


def document(report: Any, *, indent: int | None = 2, file: TextIO | None = None) -> None:  # noqa: ANN401
    """Print JSON, in ASCII: every other character is escaped, so that a terminal may have it."""
    import json

    print(json.dumps(report, indent=indent), file=file)


def path(text: str) -> None:
    """Print the path of a file of ours: byte by byte where a program reads it, printable on a terminal."""
    if sys.stdout.isatty():
        lines([text])
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text) + b"\n")


def console(*, stderr: bool = False) -> Console:
    """Return a console of rich that takes texts for text: no markup, no emoji, nothing that is not printable."""
    from rich.console import Console
    from rich.text import Text

    class CleanConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401
            return super().render_str(printable(text), **options)

    stream = sys.stderr if stderr else sys.stdout
    file = stream.stream if isinstance(stream, CleanStream) else stream
    return CleanConsole(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)


class CleanStream:
    """A text stream over another that gets printable text, line ends and tabs alone, in what it can encode."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text, cleaned; returns how much of it there was."""
        encoding = self.stream.encoding or "utf-8"
        clean = printable_lines(text)
        self.stream.write(clean.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write texts one after another."""
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.stream, name)


def with_clean_streams(verb: Callable[P, T]) -> Callable[P, T]:
    """Clean standard output and standard error, which are there (``standard_streams``), while a function runs."""

    @functools.wraps(verb)
    def cleaned(*args: P.args, **options: P.kwargs) -> T:
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast(TextIO, CleanStream(stream)) for stream in before)
        try:
            return verb(*args, **options)
        finally:
            sys.stdout, sys.stderr = before

    return cleaned


class Parser(argparse.ArgumentParser):
    """Quotes arguments printably, in one line, and leaves colours out, which Python 3.14 would put in.

    Says it where help cannot be written, which argparse keeps to itself; subparsers are of this class too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        self.color = False

    def error(self, message: str) -> NoReturn:
        """Print usage and the message to standard error, and exit with 2."""
        super().error(printable(message))

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Write the help text."""
        (file or sys.stdout).write(self.format_help())
        sys.stdout.flush()
