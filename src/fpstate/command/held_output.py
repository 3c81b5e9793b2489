"""Reports that are printed thread by thread: held back at first, so that what is refused early prints nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TextIO

HELD: Final = 256 << 10
"""Characters of a report that are held back; a longer one is printed as it comes, and may break off."""


class HeldOutput:
    """A file to print to: nothing is passed on before there are ``HELD`` characters, or its block ends well."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._held: list[str] | None = []
        self._length = 0

    def write(self, text: str) -> int:
        """Hold text back, or pass it on where more than can be held came already."""
        if self._held is None:
            return self._file.write(text)
        self._held.append(text)
        self._length += len(text)
        if self._length > HELD:
            self._release()
        return len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._release()

    def _release(self) -> None:
        held, self._held = self._held or [], None
        self._file.write("".join(held))


def write_json(
    out: HeldOutput,
    head: Mapping[str, Any],
    name: str,
    items: Iterable[Any],
    *,
    tail: Callable[[], Mapping[str, Any]] = dict,
    indent: int | None = None,
) -> None:
    """Write one object as ``json.dumps`` does, with the items of its list ``name`` taken one by one.

    ``tail`` is asked when they have all been written.
    """
    line, inner = ("", "") if indent is None else ("\n" + " " * indent, "\n" + " " * 2 * indent)
    comma = ", " if indent is None else ","

    def text(value: object, before: str) -> str:
        return json.dumps(value, indent=indent).replace("\n", before or "\n")

    def fields(values: Mapping[str, Any]) -> Iterable[str]:
        return (f"{json.dumps(key)}: {text(value, line)}" for key, value in values.items())

    out.write("{" + line + (comma + line).join([*fields(head), f"{json.dumps(name)}: ["]))
    separator = inner
    for item in items:
        out.write(separator + text(item, inner))
        separator = comma + inner
    out.write("]" if separator == inner else line + "]")
    for each in fields(tail()):
        out.write(comma + line + each)
    out.write("}\n" if indent is None else "\n}\n")
