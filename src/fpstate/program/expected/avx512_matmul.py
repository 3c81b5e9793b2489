"""The answer of ``avx512_matmul``: a product of small integers, exact in doubles."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import islice

from fpstate.program.expected.splitmix import stream

ROWS = 24
DEPTH = 16
COLUMNS = 8

FIELDS = (
    *((f"zmm{8 + row}", 64 * row, 64) for row in range(ROWS)),
    ("episodes", 8 * ROWS * COLUMNS, 8),
)


@lru_cache(maxsize=64)
def product(seed: int) -> tuple[int, ...]:
    """A x B, row by row."""
    words = stream(seed)
    a = [(word & 15) - 8 for word in islice(words, ROWS * DEPTH)]
    b = [(word & 15) - 8 for word in islice(words, DEPTH * COLUMNS)]
    return tuple(
        sum(a[row * DEPTH + k] * b[k * COLUMNS + column] for k in range(DEPTH))
        for row in range(ROWS)
        for column in range(COLUMNS)
    )


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    values = (float(argument * value) for value in product(seed))
    return struct.pack(f"<{ROWS * COLUMNS}dQ", *values, argument)
