"""Moving components between layouts: which bytes go where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fpstate.arch.component import Component, components_in
from fpstate.arch.layout import Layout
from fpstate.image import Image

Move = tuple[int, int, int]
"""From, to, size: offsets and bytes."""
Copy = Callable[[memoryview, Sequence[Move]], None]
"""Copies pieces of some source into a destination."""

LEGACY_PIECES: Final = {
    Component.X87: ((0, 24), (32, 128)),
    Component.SSE: ((24, 8), (160, 256)),
}
"""Offset and size of what the legacy region holds of each (SDM vol. 1, table 13-1); MXCSR goes with SSE."""


def moves(source: Layout, target: Layout, components: int) -> list[Move]:
    """Return the pieces that bring ``components`` from one layout to another; both must hold them."""
    return list(_moves(source, target, components))


def _moves(source: Layout, target: Layout, components: int) -> Iterator[Move]:
    for component in components_in(components):
        if component in LEGACY_PIECES:
            yield from ((at, at, size) for at, size in LEGACY_PIECES[Component(component)])
        else:
            yield source.offset(component), target.offset(component), target.size_of(component)


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
