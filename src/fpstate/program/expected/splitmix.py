"""splitmix64, the generator that turns a seed into data (Steele, Lea, Flood: OOPSLA 2014)."""

from __future__ import annotations

from collections.abc import Iterator

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def mix(state: int) -> int:
    """The output that belongs to ``state``."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def stream(seed: int) -> Iterator[int]:
    """The endless sequence of 64-bit outputs from ``seed``."""
    state = seed
    while True:
        state = (state + GOLDEN_GAMMA) & MASK
        yield mix(state)


def nth(seed: int, index: int) -> int:
    """Output ``index`` of the stream, from 0."""
    return mix(seed + (index + 1) * GOLDEN_GAMMA)
