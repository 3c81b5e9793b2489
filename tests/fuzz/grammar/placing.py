"""Pieces of a file and what points to them: in order, again and again, in turns, overlapping, backwards, far away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from .draw import Draw

PATTERNS: Final = (
    "in order",
    "in order",
    "repeated",
    "in turns",
    "overlapping",
    "backwards",
    "nested",
    "one",
)
_GAPS: Final = (0, 0, 0, 4, 60, 4096, 70_000, 300_000)
_ZEROS: Final = 4096
_FAR: Final = 3 << 20


class Reference(NamedTuple):
    """What a table says of a piece: where it begins, and its size."""

    offset: int
    size: int


def placed(draw: Draw, pieces: Sequence[bytes], *, far: bool) -> tuple[bytes, list[Reference]]:
    """Return the pieces laid out, and references to them that count from the start of these bytes.

    ``far``: gaps may be of megabytes, for files that are compressed.
    """
    body, own = bytearray(), []
    for piece in pieces:
        gap = draw.pick(_GAPS) if draw.chance(16) else 0
        gap = _FAR if far and draw.chance(24) else gap
        # Zeros are read as one empty note after the other, all ones as nothing: that is over sooner.
        body += (b"\0" if gap <= _ZEROS else b"\xff") * gap
        own.append(Reference(len(body), len(piece)))
        body += piece
    return bytes(body), [_claim(draw, each) for each in _pattern(draw, own)]


def times(draw: Draw) -> int:
    """How often something is repeated: a few times, seldom hundreds, and no more than a file has left of it."""
    wanted = 1 + draw.few(6) if not draw.chance(24) else draw.pick((12, 20, 40, 400))
    chosen = min(wanted, draw.repeats)
    draw.repeats = max(1, draw.repeats // chosen)
    return chosen


def _pattern(draw: Draw, own: list[Reference]) -> list[Reference]:
    if not own:
        return own
    pattern = draw.pick(PATTERNS) if draw.chance(128) else "in order"
    if pattern == "repeated":
        return own * times(draw)
    if pattern == "in turns":
        return [own[0], own[-1]] * times(draw)
    if pattern == "overlapping":
        step = draw.pick((1, 4, 12, 64))
        return own + [Reference(at + step, size) for at, size in own for _ in range(times(draw))]
    if pattern == "backwards":
        return own[::-1] * (1 + draw.few(3))
    if pattern == "nested":
        whole = Reference(own[0].offset, own[-1].offset + own[-1].size - own[0].offset)
        return [whole, *own]
    return [draw.pick(own)] * times(draw) if pattern == "one" else own


def _claim(draw: Draw, reference: Reference) -> Reference:
    return Reference(draw.odd(reference.offset, 8, 3), draw.odd(reference.size, 8, 3))
