"""Tile configurations by chance: legal ones, and some for each reason to refuse one."""

from __future__ import annotations

import random


def any_configuration(source: random.Random) -> bytes:
    """A tile configuration: eight tiles, or one that is broken in some way, or all but illegal."""
    data = bytearray(64)
    data[0] = 1
    for tile in range(8):
        width, rows = 4 * source.randrange(1, 17), source.randrange(1, 17)
        if source.random() < 0.2:
            width = rows = 0
        data[16 + 2 * tile], data[48 + tile] = width, rows
    choice = source.random()
    if choice < 0.15:
        data[1] = source.choice((1, 5, 15, 16, 255))
    elif choice < 0.2:
        data[16] = 3
    elif choice < 0.3:
        data[source.randrange(64)] ^= 1 << source.randrange(8)
    elif choice < 0.35:
        data[source.choice((2, 15, 17, 32, 47, 56, 63))] = 1
    elif choice < 0.4:
        data[0] = source.choice((0, 2, 128, 255))
    elif choice < 0.45:
        data[48 + source.randrange(8)] = source.choice((0, 17))
    elif choice < 0.5:
        data[:] = bytes([source.choice((0, 255))]) * 64
    return bytes(data)
