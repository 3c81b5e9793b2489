"""TILECFG: which tile configurations a processor takes, and why it does not take the others.

Sources: SDM Vol. 1, 18.2 (palettes), Vol. 2, LDTILECFG, TILELOADD and TILESTORED; that restores never fault but make
an illegal configuration initial, and that they do not look at start_row: measured on Emerald Rapids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONFIGURATION_SIZE: Final = 64
TILES: Final = 8
MOST_ROWS: Final = 16
"""Rows of a tile in palette 1 (CPUID.(1DH,1):ECX[15:0])."""
MOST_BYTES: Final = 64
"""Bytes of a row in palette 1 (CPUID.(1DH,1):EBX[15:0])."""
ELEMENT_SIZE: Final = 4
"""Bytes of which a row must have a multiple for TILELOADD and TILESTORED."""

RESERVED: Final = (slice(2, 16), slice(32, 48), slice(56, 64))
START_ROW_AT: Final = 1
WIDTHS_AT: Final = 16
"""Of colsb, two bytes a tile."""
ROWS_AT: Final = 48
"""Of rows, a byte a tile."""


@dataclass(frozen=True, slots=True)
class Defect:
    """One field of a configuration that is not taken: where it is, what it holds, and the nearest legal value."""

    text: str
    offset: int
    found: int
    expected: int
    tile: int | None = None


def configuration_problem(data: bytes | bytearray | memoryview) -> str:
    """Say why LDTILECFG raises #GP for these 64 bytes; empty where it takes them.

    Palette 0 is taken whatever stands after it, and means the initial configuration.
    """
    defect = configuration_defect(data)
    return defect.text if defect else ""


def configuration_defect(data: bytes | bytearray | memoryview) -> Defect | None:
    """Return the first field for which LDTILECFG raises #GP for these 64 bytes; None where it takes them."""
    if data[0] == 0:
        return None
    if data[0] != 1:
        return Defect(f"there is no palette {data[0]}", 0, data[0], 1)
    for span in RESERVED:
        if any(data[span]):
            at = _first(data, span.start)
            return Defect(
                f"reserved byte {at} is {data[at]:#04x}: reserved bytes are not zero", at, data[at], 0
            )
    for tile in range(TILES):
        width, rows = shape(data, tile)
        width_at, rows_at = WIDTHS_AT + 2 * tile, ROWS_AT + tile
        text = f"tile {tile} has {rows} rows of {width} bytes"
        if width > MOST_BYTES or (width and not rows):
            return Defect(text, width_at, width, MOST_BYTES if rows else 0, tile)
        if rows > MOST_ROWS or (rows and not width):
            return Defect(text, rows_at, rows, MOST_ROWS if width else 0, tile)
    return None


def restore_defect(data: bytes | bytearray | memoryview) -> Defect | None:
    """Return the first field for which a restore makes these 64 bytes initial; None where it loads them.

    Zeros are the initial configuration, and no defect.
    """
    if data[0] == 0 and any(data):
        at = _first(data, 0)
        return Defect(f"palette 0 has no configuration, and byte {at} is {data[at]:#04x}", at, data[at], 0)
    return configuration_defect(data)


def use_defects(data: bytes | bytearray | memoryview) -> list[Defect]:
    """Return why TILELOADD and TILESTORED raise #UD for tiles of a legal configuration, one defect a tile."""
    defects = []
    for tile in range(TILES):
        width, rows = shape(data, tile)
        start = data[START_ROW_AT]
        if width % ELEMENT_SIZE:
            text = f"tile {tile} has rows of {width} bytes, which is not a multiple of {ELEMENT_SIZE}"
            defects.append(
                Defect(text, WIDTHS_AT + 2 * tile, width, width // ELEMENT_SIZE * ELEMENT_SIZE, tile)
            )
        elif rows and start >= rows:
            text = f"start_row is {start}, and tile {tile} has {rows} rows"
            defects.append(Defect(text, START_ROW_AT, start, 0, tile))
    return defects


def shape(data: bytes | bytearray | memoryview, tile: int) -> tuple[int, int]:
    """Return the bytes of a row (colsb) and the rows that a configuration gives a tile."""
    at = WIDTHS_AT + 2 * tile
    return data[at] | data[at + 1] << 8, data[ROWS_AT + tile]


def is_loaded(data: bytes | bytearray | memoryview) -> bool:
    """Tell whether a restore (XRSTOR, XRSTORS) loads these 64 bytes as they stand.

    All others, palette 0 with anything after it too, become the initial configuration, without a fault.
    """
    return data[0] == 1 and configuration_defect(data) is None


def _first(data: bytes | bytearray | memoryview, start: int) -> int:
    return next(index for index in range(start, CONFIGURATION_SIZE) if data[index])
