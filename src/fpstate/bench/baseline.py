"""What a switch is held to: XSAVEC+XRSTOR, or FXSAVE+FXRSTOR, in a bare loop, and merely reading a context's lines."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

from fpstate import _core
from fpstate.image import Image

PLAIN = "XSAVEC+XRSTOR"
READ = "read the lines"


class Slots:
    """Slots with an image each, over which the core walks by plain instructions; one or two images, by turns."""

    def __init__(self, images: Sequence[Image], count: int) -> None:
        self._slots = _core.bench_slots(
            images[0].to_bytes(), count, *(image.to_bytes() for image in images[1:])
        )
        self.stride, self.lines = _core.bench_size(self._slots)

    def walk(self, way: str, order: array[int], starts: Iterator[int], steps: int) -> Callable[[], float]:
        """Return what takes a sample: the nanoseconds of a step by ``way``, each time further on in the order.

        Ways over the same slots share ``starts``: none of them finds in the caches what another one left there.
        """
        return lambda: _core.bench_walk(self._slots, way, order, next(starts), steps) / steps
