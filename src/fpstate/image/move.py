"""Moving components between layouts: which bytes go where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import Component, components_in
from fpstate.arch.layout import Layout
from fpstate.image.canonical import register_spans

Move = tuple[int, int, int]
"""From, to, size: offsets and bytes."""

LEGACY_PIECES: Final[Mapping[int, tuple[tuple[int, int], ...]]] = MappingProxyType(
    {
        Component.X87: ((0, 24), (32, 128)),
        Component.SSE: ((24, 8), (160, 256)),
    }
)
"""Offset and size of what the legacy region holds of each (SDM vol. 1, table 13-1); MXCSR goes with SSE."""


def moves(source: Layout, target: Layout, components: int) -> list[Move]:
    """Return the pieces that bring ``components`` whole, padding included; both layouts must hold them."""
    return list(_whole(source, target, components))


def register_moves(source: Layout, target: Layout, components: int) -> list[Move]:
    """Return the pieces that bring the registers of ``components`` alone, and no byte between them.

    Both layouts must hold the components; where one has less room, what does not fit stays behind. MXCSR is
    not among them: whether it is there is not for the SSE bit alone to say.
    """
    return list(_registers(source, target, components))


def _whole(source: Layout, target: Layout, components: int) -> Iterator[Move]:
    for component in components_in(components):
        if component in LEGACY_PIECES:
            yield from ((at, at, size) for at, size in LEGACY_PIECES[component])
        else:
            yield source.offset(component), target.offset(component), target.size_of(component)


def _registers(source: Layout, target: Layout, components: int) -> Iterator[Move]:
    for component in components_in(components):
        start, to = source.place(component), target.place(component)
        room = min(start.size, to.size)
        for offset, size in register_spans(component) or ((0, room),):
            kept = min(size, room - offset)
            if kept > 0:
                yield start.offset + offset, to.offset + offset, kept
