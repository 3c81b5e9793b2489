"""Samples of several ways, taken in turn, so that whatever else the machine does falls on all of them.

Times are of the processor, not of the wall: others that run on it in between do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LEAST_REPEATS = 30
"""A figure is the least and the median of at least so many samples, but for ``--quick``."""


@dataclass(frozen=True)
class Samples:
    """What one way took, each time; nanoseconds, or whatever the way counts in."""

    values: tuple[float, ...]

    @property
    def min(self) -> float:
        """The least: what the way costs when nothing disturbs it."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The median: what it cost on this machine, as busy as it was."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, float]:
        """Return the least and the median."""
        return {"min": round(self.min, 3), "median": round(self.median, 3)}


def figures(taken: Mapping[str, Samples]) -> dict[str, dict[str, float]]:
    """Return every way's least and median."""
    return {way: samples.as_json() for way, samples in taken.items()}


def in_turn(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Samples]:
    """Call every way once in each of ``repeats`` rounds, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(way())
    return {name: Samples(tuple(values)) for name, values in taken.items()}
