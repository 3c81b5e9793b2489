"""The answer of ``spin``: twelve xorshift64 states after many rounds.

A round is linear over GF(2), so many rounds are a power of one 64 x 64 bit matrix.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import islice

from fpstate.program.expected.splitmix import MASK, stream

LANES = 12
FIELDS = tuple(
    (name, 8 * index, 8)
    for index, name in enumerate(
        ("rbx", "rbp", "rsi", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
    )
)

Matrix = tuple[int, ...]
"""Column i is the image of bit i."""


def step(x: int) -> int:
    """One round of one generator."""
    x ^= (x << 13) & MASK
    x ^= x >> 7
    return x ^ ((x << 17) & MASK)


def _apply(matrix: Matrix, vector: int) -> int:
    result = 0
    while vector:
        low = vector & -vector
        result ^= matrix[low.bit_length() - 1]
        vector ^= low
    return result


@lru_cache(maxsize=64)
def _doubled(power: int) -> Matrix:
    """The matrix of ``2**power`` rounds."""
    if power == 0:
        return tuple(step(1 << bit) for bit in range(64))
    half = _doubled(power - 1)
    return tuple(_apply(half, column) for column in half)


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    states = [word | 1 for word in islice(stream(seed), LANES)]
    power = 0
    while argument >> power:
        if argument >> power & 1:
            matrix = _doubled(power)
            states = [_apply(matrix, state) for state in states]
        power += 1
    return struct.pack(f"<{LANES}Q", *states)
