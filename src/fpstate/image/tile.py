"""TILECFG: which tile configurations a processor takes, and why it does not take the others.

Sources: SDM Vol. 1, 18.2 (palettes), Vol. 2, LDTILECFG; that restores never fault but make an illegal
configuration initial, and that start_row is not looked at: measured on Emerald Rapids.
"""

from __future__ import annotations

from typing import Final

CONFIGURATION_SIZE: Final = 64
TILES: Final = 8
MOST_ROWS: Final = 16
"""Rows of a tile in palette 1 (CPUID.(1DH,1):ECX[15:0])."""
MOST_BYTES: Final = 64
"""Bytes of a row in palette 1 (CPUID.(1DH,1):EBX[15:0])."""

_RESERVED: Final = (slice(2, 16), slice(32, 48), slice(56, 64))
_WIDTHS_AT: Final = 16
_ROWS_AT: Final = 48


def configuration_problem(data: bytes | memoryview) -> str:
    """Say why LDTILECFG raises #GP for these 64 bytes; empty where it takes them.

    Palette 0 is taken whatever stands behind it, and means the initial configuration.
    """
    if data[0] == 0:
        return ""
    if data[0] != 1:
        return f"there is no palette {data[0]}"
    if any(any(data[span]) for span in _RESERVED):
        return "reserved bytes are not zero"
    for tile in range(TILES):
        width, rows = shape(data, tile)
        if width > MOST_BYTES or rows > MOST_ROWS or bool(width) != bool(rows):
            return f"tile {tile} has {rows} rows of {width} bytes"
    return ""


def shape(data: bytes | memoryview, tile: int) -> tuple[int, int]:
    """Return the bytes of a row (colsb) and the rows that a configuration gives a tile."""
    at = _WIDTHS_AT + 2 * tile
    return data[at] | data[at + 1] << 8, data[_ROWS_AT + tile]


def is_loaded(data: bytes | memoryview) -> bool:
    """Tell whether a restore (XRSTOR, XRSTORS) loads these 64 bytes as they stand.

    All others, palette 0 with anything behind it too, become the initial configuration, without a fault.
    """
    return data[0] == 1 and not configuration_problem(data)
