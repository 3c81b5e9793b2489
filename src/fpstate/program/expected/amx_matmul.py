"""The answer of ``amx_matmul``: a product of signed bytes, summed modulo 2 to the 32."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import islice

from fpstate.program.expected.splitmix import stream

ROWS = 15
DEPTH = 64
COLUMNS = 8
HALVES = 2
"""A is ``HALVES`` tiles of ``ROWS`` x ``DEPTH`` bytes, B as many of ``DEPTH`` x ``COLUMNS``."""
GROUP = 4
"""Bytes of A and of B that one element of C takes in at once: B has so many of its rows in one row of its tile."""
TILES = HALVES * HALVES
SIZE = 4 * ROWS * COLUMNS

FIELDS = (
    *(
        (f"tmm{tile} row {row}", SIZE * tile + 4 * COLUMNS * row, 4 * COLUMNS)
        for tile in range(TILES)
        for row in range(ROWS)
    ),
    ("episodes", SIZE * TILES, 8),
)

_A_SIZE = ROWS * DEPTH
_B_SIZE = DEPTH * COLUMNS


@lru_cache(maxsize=64)
def product(seed: int) -> tuple[int, ...]:
    """A x B: the upper half of A's rows by the left half of B's columns, then by the right, then the lower half."""
    size = HALVES * (_A_SIZE + _B_SIZE)
    words = struct.pack(f"<{size // 8}Q", *islice(stream(seed), size // 8))
    values = struct.unpack(f"<{size}b", words)
    left = [values[_A_SIZE * half :][:_A_SIZE] for half in range(HALVES)]
    right = [values[_A_SIZE * HALVES + _B_SIZE * half :][:_B_SIZE] for half in range(HALVES)]
    return tuple(
        sum(a[row * DEPTH + k] * b[_place(k, column)] for k in range(DEPTH))
        for a in left
        for b in right
        for row in range(ROWS)
        for column in range(COLUMNS)
    )


def _place(row: int, column: int) -> int:
    """Return where a tile has an element of B (SDM Vol. 2, TDPBSSD)."""
    return row // GROUP * GROUP * COLUMNS + column * GROUP + row % GROUP


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    values = (argument * value & 0xFFFFFFFF for value in product(seed))
    return struct.pack(f"<{TILES * ROWS * COLUMNS}IQ", *values, argument)
