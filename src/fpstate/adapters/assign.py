"""Many registers into an image at once: in an order that loses nothing, and all or none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from fpstate.errors import RegisterError
from fpstate.image import Image, abridged_tag

_FIRST: Final = ("fstat",)
"""TOP says which physical register ST(i) is, whose tag an assignment of ST(i) sets."""
_LAST: Final = ("ftag", "ftag_abridged")
"""Tags, which assignments of ST(i) change."""


def assign(image: Image, values: Mapping[str, int]) -> None:
    """Assign registers, by fpstate's names, in whatever order they come; the image changes wholly or not at all.

    Raises RegisterError where a register does not exist here, a value does not fit, or two registers that share
    bits have values that contradict each other.
    """
    copy = image.copy()
    for name in sorted(values, key=_rank):
        copy.registers[name] = values[name]
    for name, value in values.items():
        found = copy.registers[name]
        if found != value and not (name == "ftag" and abridged_tag(found) == abridged_tag(value)):
            raise RegisterError(
                name, f"{value:#x} contradicts another register here, which makes it {found:#x}"
            )
    if image.readonly:
        raise RegisterError(
            next(iter(values), ""), "the image is read-only", help="Image.copy() gives a writable one"
        )
    image.store.view[:] = copy.store.view


def our_names(theirs: Iterable[str], table: Mapping[str, str], tool: str) -> list[str]:
    """Return fpstate's names for a tool's; raises RegisterError for one that the tool does not have."""
    found = []
    for name in theirs:
        if name not in table:
            close = difflib.get_close_matches(name, table, n=4)
            raise RegisterError(
                name, f"no register of {tool}'s", help="close: " + ", ".join(close) if close else None
            )
        found.append(table[name])
    return found


def _rank(name: str) -> int:
    return -1 if name in _FIRST else 1 if name in _LAST else 0
