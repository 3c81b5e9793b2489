"""The answer of ``avx_mandelbrot``: counts of a tile of 16 x 16 points, and their fold."""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import islice

from fpstate.program.expected.splitmix import stream

FIELDS = (("fold", 0, 32), ("counts of the last row", 32, 128), ("episodes", 160, 8))

ITERATIONS = 64
SIDE = 16
STEP = 2.0**-7
LANES = 4
FACTOR = 31
MODULUS = 1 << 40


def escape_count(real: float, imaginary: float) -> int:
    """Iterations of z*z + c with |z| below 2, of 64."""
    zr = zi = 0.0
    for count in range(ITERATIONS):
        rr, ii = zr * zr, zi * zi
        if not rr + ii < 4.0:
            return count
        zi = zr * zi
        zi = (zi + zi) + imaginary
        zr = (rr - ii) + real
    return ITERATIONS


@lru_cache(maxsize=64)
def tile(seed: int) -> tuple[tuple[int, ...], ...]:
    """The counts of the seed's tile, row by row."""
    left, bottom = (float(word >> 44) * 2.0**-23 for word in islice(stream(seed), 2))
    left += -0.875
    bottom += 0.0625
    return tuple(
        tuple(escape_count(left + column * STEP, bottom + row * STEP) for column in range(SIDE))
        for row in range(SIDE)
    )


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    fold = [0] * LANES
    counts = tile(seed)
    for _ in range(argument):
        for row in counts:
            for column, count in enumerate(row):
                fold[column % LANES] = (fold[column % LANES] * FACTOR + count) % MODULUS
    last = counts[-1] if argument else (0,) * SIDE
    return struct.pack("<4d16dQ", *map(float, fold), *map(float, last), argument)
