"""The library's own switches, as they are measured: each core, in C and from Python, and contexts filled for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from fpstate import _core
from fpstate._core import switch
from fpstate.errors import FpStateError
from fpstate.image import Image

from .quantity import QUANTITIES

NAMES: Final = ("portable", "fast")
CALLS_IN_A_TURN: Final = 16
"""Switches from Python in one turn of a loop, so that the loop itself does not show."""


@dataclass(frozen=True)
class Ring:
    """Contexts in the order of their turns."""

    contexts: list[_core.Context]
    native: object

    @classmethod
    def of(cls, contexts: list[_core.Context]) -> Ring:
        """Return a ring of contexts that there are already."""
        return cls(contexts, _core.bench_ring(contexts))


def make_contexts(images: Sequence[Image], count: int) -> Ring:
    """Return so many contexts; they hold the images by turns."""
    ring = Ring.of([_core.Context() for _ in range(count)])
    for index, image in enumerate(images):
        _core.bench_fill(ring.native, image.to_bytes(), index, len(images))
    return ring


@dataclass(frozen=True)
class Core:
    """One of the cores, by name."""

    name: str

    def use(self) -> None:
        """Let it be the one that switches."""
        _core.core_use(self.name)

    def walk(self, ring: Ring, way: str, starts: Iterator[int], steps: int) -> Callable[[], float]:
        """Return what takes a sample: the nanoseconds of a switch in C, each time further on in the ring.

        Ways: ``switch`` and ``next`` call in a loop, ``rotate`` and ``rotate next`` are one call.
        """

        def sample() -> float:
            self.use()
            return _core.bench_switches(ring.native, way, next(starts) % len(ring.contexts), steps) / steps

        return sample

    def calls(self, ring: Ring, count: int) -> Callable[[], float]:
        """Return what takes a sample: the nanoseconds of ``switch(a, b)`` called from Python.

        The first context's state is loaded before, and this thread's own one put back afterwards; so both contexts keep
        their class, but for what Python itself uses in between.
        """
        turns, host = max(1, count // CALLS_IN_A_TURN), _core.Context()
        one, other = ring.contexts[:2]

        def sample() -> float:
            self.use()
            host.save()
            one.restore()
            try:
                return _calls(one, other, turns)
            finally:
                host.restore()

        return sample

    def bulk(self, ring: Ring, steps: int) -> Callable[[], float]:
        """Return what takes a sample: the nanoseconds of a switch where one call from Python makes them all."""
        order = _core.Order(ring.contexts)

        def sample() -> float:
            self.use()
            start = time.thread_time_ns()
            order.run(steps)
            return (time.thread_time_ns() - start) / steps

        return sample


def cores() -> tuple[list[Core], dict[str, str]]:
    """Return the cores that work here, and what is missing for the rest, by the names of the quantities."""
    found, missing = [], dict[str, str]()
    with core_kept():
        for name in NAMES:
            try:
                Core(name).use()
                found.append(Core(name))
            except FpStateError as error:
                missing |= dict.fromkeys(_depending(name), str(error))
    return found, missing


@contextmanager
def core_kept() -> Iterator[None]:
    """Put the core that was chosen in place again, whichever are used meanwhile."""
    chosen = _core.core_choice()["core"]
    try:
        yield
    finally:
        _core.core_use(chosen)


def _depending(core: str) -> list[str]:
    """Return the names of the quantities that need a core."""
    names = [quantity.name for quantity in QUANTITIES]
    return [name for name in names if core in name.split(".") or (core, name) == ("fast", "many.over_read")]


def control_walk(steps: int) -> Callable[[], float]:
    """Return what takes a sample of the switch of MXCSR and FCW alone, in C."""
    return lambda: _core.bench_control(steps) / steps


def _calls(one: _core.Context, other: _core.Context, turns: int) -> float:
    call = switch
    start = time.thread_time_ns()
    for _ in range(turns):
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
        call(one, other)
        call(other, one)
    return (time.thread_time_ns() - start) / (turns * CALLS_IN_A_TURN)
