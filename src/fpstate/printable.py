"""Text of others, such as the name of a thread or of a file, made fit to be shown.

What a terminal would obey, or what would change how the text around it reads, is written as an escape sequence of
Python: control characters of both sets (ESC, DEL, U+009B), marks that turn the direction of text (U+202E), line and
paragraph separators, characters that show nothing, and the halves of pairs that stand for bytes which are no text.
"""

from __future__ import annotations

import re
from typing import Final

_DOUBTFUL: Final = re.compile(r"[^ -~]+")
_DOUBTFUL_IN_LINES: Final = re.compile(r"[^\t\n -~]+")


def printable(text: str) -> str:
    """Return text in one line, without anything that is not printable (``str.isprintable``)."""
    return _DOUBTFUL.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """As ``printable``, but line ends and tabs stay."""
    return _DOUBTFUL_IN_LINES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in found[0]
    )
