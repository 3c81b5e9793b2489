"""The answer of ``opmask_sieve``: the primes of four windows, and their fold."""

from __future__ import annotations

import struct
from functools import lru_cache

from fpstate.program.expected.splitmix import nth

FIELDS = (
    ("window", 0, 8),
    ("count", 8, 8),
    ("total count", 16, 8),
    ("episodes", 24, 8),
    ("fold", 64, 64),
    ("primes", 128, 1920),
)

NUMBERS = 384
WINDOWS = 4
LANES = 16
ROTATION = 5
SPACING = 64  # of the lanes inside one Python integer, which folds them all at once
ONES = sum(1 << (SPACING * lane) for lane in range(LANES))
WORD = ((1 << 32) - 1) * ONES
LOW = ((1 << ROTATION) - 1) * ONES


@lru_cache(maxsize=256)
def window(seed: int, index: int) -> tuple[int, tuple[int, ...]]:
    """The first number of the seed's window ``index`` (of 4), and the primes in it."""
    first = 1024 + (nth(seed, index) & 0x7FFF)
    primes = tuple(
        number
        for number in range(first, first + NUMBERS)
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1))
    )
    return first, primes


def _packed(first: int, primes: tuple[int, ...]) -> list[int]:
    """What VPCOMPRESSD leaves of each 16 numbers; 64 without a prime are passed over."""
    vectors = []
    for start in range(first, first + NUMBERS, LANES):
        word = start - (start - first) % 64
        if any(word <= prime < word + 64 for prime in primes):
            found = tuple(prime for prime in primes if start <= prime < start + LANES)
            vectors.append(sum(prime << (SPACING * lane) for lane, prime in enumerate(found)))
    return vectors


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    windows = [window(seed, index) for index in range(min(WINDOWS, argument))]
    packed = [_packed(first, primes) for first, primes in windows]
    fold = 0
    total = 0
    for episode in range(argument):
        total += len(windows[episode % WINDOWS][1])
        for vector in packed[episode % WINDOWS]:
            rotated = ((fold << ROTATION) & WORD) | ((fold >> (32 - ROTATION)) & LOW)
            fold = (rotated + vector) & WORD
    lanes = [(fold >> (SPACING * lane)) & 0xFFFFFFFF for lane in range(LANES)]
    first, primes = windows[(argument - 1) % WINDOWS] if argument else (0, ())
    return struct.pack(f"<4Q32x{LANES}I{len(primes)}I", first, len(primes), total, argument, *lanes, *primes)
