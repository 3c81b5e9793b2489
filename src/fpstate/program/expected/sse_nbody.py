"""The answer of ``sse_nbody``: the same IEEE operations in the same order, in Python's doubles."""

from __future__ import annotations

import math
import struct
from functools import lru_cache

from fpstate.program.expected.splitmix import MASK, stream

FIELDS = (
    ("fold", 0, 16),
    *((f"position {body}", 16 + 16 * body, 16) for body in range(3)),
    *((f"velocity {body}", 64 + 16 * body, 16) for body in range(3)),
    ("episodes", 112, 8),
)

STEPS = 512
SOFTENING = 0.01
TIME_STEP = 2.0**-7
PAIRS = ((0, 1), (0, 2), (1, 2))
ROTATION = 7

Vector = list[float]


def _start(seed: int) -> tuple[list[Vector], list[Vector], list[float]]:
    words = stream(seed)
    positions = [[float(next(words) >> 11) * 2.0**-51 - 2.0 for _ in range(2)] for _ in range(3)]
    velocities = [[float(next(words) >> 11) * 2.0**-53 - 0.5 for _ in range(2)] for _ in range(3)]
    masses = [float(next(words) >> 11) * 2.0**-53 + 0.5 for _ in range(3)]
    return positions, velocities, masses


@lru_cache(maxsize=64)
def episode(seed: int) -> bytes:
    """Positions and velocities after one episode, as they lie in memory."""
    positions, velocities, masses = _start(seed)
    for _ in range(STEPS):
        for i, j in PAIRS:
            dx = positions[i][0] - positions[j][0]
            dy = positions[i][1] - positions[j][1]
            squared = (dx * dx + dy * dy) + SOFTENING
            pull = TIME_STEP / (math.sqrt(squared) * squared)
            dx *= pull
            dy *= pull
            velocities[i][0] -= dx * masses[j]
            velocities[i][1] -= dy * masses[j]
            velocities[j][0] += dx * masses[i]
            velocities[j][1] += dy * masses[i]
        for position, velocity in zip(positions, velocities, strict=True):
            position[0] += TIME_STEP * velocity[0]
            position[1] += TIME_STEP * velocity[1]
    return struct.pack("<12d", *(value for vector in positions + velocities for value in vector))


def answer(seed: int, argument: int, features: int) -> bytes:
    """The result bytes."""
    if argument == 0:
        return bytes(120)
    after = episode(seed)
    words = struct.unpack("<12Q", after)
    fold = [0, 0]
    for _ in range(argument):
        for index, word in enumerate(words):
            lane = fold[index % 2]
            lane = ((lane << ROTATION) | (lane >> (64 - ROTATION))) & MASK
            fold[index % 2] = (lane + word) & MASK
    return struct.pack("<2Q", *fold) + after + struct.pack("<Q", argument)
