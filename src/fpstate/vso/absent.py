"""What stands for the native core's contexts where it is not built: names that import, and say what is missing."""

from __future__ import annotations

from typing import NoReturn

from fpstate.errors import UnsupportedHere


def _missing() -> UnsupportedHere:
    return UnsupportedHere(
        "the native core (fpstate._core), which switches contexts", help="build the package on x86-64 Linux"
    )


class Context:
    """No context can be made. Raises UnsupportedHere."""

    def __init__(self) -> None:
        raise _missing()


class Order:
    """No contexts can take turns. Raises UnsupportedHere."""

    def __init__(self, contexts: object, indices: object = None) -> None:
        raise _missing()


def switch(outgoing: object, incoming: object, next: object = None, /) -> NoReturn:
    """Raise UnsupportedHere."""
    raise _missing()
