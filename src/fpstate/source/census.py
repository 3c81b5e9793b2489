"""Which threads of a process compute under other rules than the rest: rounding, traps, flushing, keys.

A thread takes its control words from the one that creates it, so threads made before a change differ from those
made after, and so do their results. What every operation leaves behind, the sticky exception flags, does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fpstate.image import Image, initial_value
from fpstate.source.thread import ThreadState

STICKY: Final = 0x3F
"""MXCSR[5:0], the exception flags: arithmetic sets them, nobody's choice."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What decides how a thread computes; None where its image has no room for the register."""

    mxcsr: int | None
    fcw: int | None
    pkru: int | None

    @classmethod
    def of(cls, image: Image) -> Environment:
        """Read it from an image; the sticky flags of MXCSR are left out."""
        registers = image.registers
        mxcsr = registers.get("mxcsr")
        return cls(None if mxcsr is None else mxcsr & ~STICKY, registers.get("fctrl"), registers.get("pkru"))


@dataclass(frozen=True, slots=True)
class Odd:
    """A thread, by its place in the row, that has another value than most; ``register`` is gdb's name."""

    index: int
    register: str
    value: int
    majority: int


_VOTES: Final[tuple[tuple[str, Callable[[Environment], int | None]], ...]] = (
    ("mxcsr", lambda environment: environment.mxcsr),
    ("fctrl", lambda environment: environment.fcw),
    ("pkru", lambda environment: environment.pkru),
)


class Census:
    """What most threads have, counted one thread after the other; no image is kept.

    Each register is voted on apart. Where no value has more threads than every other, the initial value wins
    if it is among the first, else that of the first thread.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {register: Counter() for register, _ in _VOTES}

    def count(self, image: Image) -> None:
        """Count one thread's values."""
        environment = Environment.of(image)
        for register, value_of in _VOTES:
            value = value_of(environment)
            if value is not None:
                self._counts[register][value] += 1

    def majorities(self) -> dict[str, int]:
        """Return the value of most threads by register, for those that any thread has."""
        return {
            register: _majority(counts, initial_value(register))
            for register, counts in self._counts.items()
            if counts
        }

    @property
    def alike(self) -> bool:
        """Whether no thread differs from another."""
        return all(len(counts) < 2 for counts in self._counts.values())


def odd_registers(index: int, image: Image, majorities: Mapping[str, int]) -> list[Odd]:
    """Return where the thread at ``index`` differs from what most have."""
    environment = Environment.of(image)
    return [
        Odd(index, register, value, majorities[register])
        for register, value_of in _VOTES
        if (value := value_of(environment)) is not None and value != majorities.get(register, value)
    ]


def odd_ones(threads: Sequence[ThreadState]) -> list[Odd]:
    """Return where threads differ from the majority, by thread, as ``Census`` counts it."""
    census = Census()
    for thread in threads:
        census.count(thread.image)
    majorities = census.majorities()
    return [odd for index, each in enumerate(threads) for odd in odd_registers(index, each.image, majorities)]


def x87_depth(image: Image) -> int | None:
    """Return how many registers of the x87 stack are in use; anything but 0 between calls is a leak, or MMX.

    None where the image has no room for x87.
    """
    tags = image.registers.get("ftag_abridged")
    return None if tags is None else tags.bit_count()


def _majority(counts: Counter[int], initial: int) -> int:
    most = max(counts.values())
    first = [value for value, count in counts.items() if count == most]
    return initial if initial in first else first[0]
