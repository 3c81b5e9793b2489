"""Filling a buffer with components from wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fpstate.arch.layout import Layout
from fpstate.image import Image
from fpstate.image.move import Move

Copy = Callable[[memoryview, Sequence[Move]], None]
"""Copies pieces of some source into a destination."""


def start_image(view: memoryview, layout: Layout, xstate_bv: int) -> None:
    """Make a zeroed buffer an image whose components are yet to be copied in: control words and header."""
    initial = Image.initial(layout).to_bytes()
    view[: len(initial)] = initial
    view[512:520] = xstate_bv.to_bytes(8, "little")


def copier(source: Image) -> Copy:
    """Return a Copy that takes its pieces from an image."""
    data = memoryview(source.to_bytes())

    def copy(destination: memoryview, pieces: Sequence[Move]) -> None:
        for at, to, size in pieces:
            destination[to : to + size] = data[at : at + size]

    return copy
