"""TILECFG and tiles as JSON-ready data and in words: shapes, and of each tile the rows that are configured.

Source: SDM Vol. 1, 18.2 (tiles and palettes), Vol. 2, LDTILECFG (the memory form of TILECFG).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

from fpstate.errors import NumberError
from fpstate.image import lane
from fpstate.image.registers import Registers
from fpstate.image.tile import (
    CONFIGURATION_SIZE,
    MOST_BYTES,
    MOST_ROWS,
    TILES,
    is_loaded,
    restore_defect,
    shape,
)

TILE_SIZE: Final = MOST_ROWS * MOST_BYTES
_ROW: Final = (1 << 8 * MOST_BYTES) - 1


def is_tile(name: str) -> bool:
    """Tell whether a register is one of tmm0 to tmm7."""
    return name.startswith("tmm")


def configuration(value: int) -> dict[str, Any]:
    """Return palette, start row and the shape of each tile; ``problem`` says why no restore loads it, if none does."""
    data = value.to_bytes(CONFIGURATION_SIZE, "little")
    shapes = (shape(data, tile) for tile in range(TILES))
    return {
        "palette_id": data[0],
        "start_row": data[1],
        "tiles": [{"rows": rows, "colsb": width} for width, rows in shapes],
        "problem": defect.text if (defect := restore_defect(data)) else None,
    }


def tile(registers: Registers, name: str, lane_type: str, *, whole: bool) -> dict[str, Any]:
    """Return a tile's shape and its rows, each as a hexadecimal number, or as lanes, lowest first.

    Rows and bytes are those of TILECFG, or all 16 of 64 with ``whole`` and where no legal configuration is known.
    ``outside`` counts the bytes of the others that are not zero.
    """
    data = registers[name].to_bytes(TILE_SIZE, "little")
    shaped = _shape(registers, int(name.removeprefix("tmm")))
    width, rows = (MOST_BYTES, MOST_ROWS) if whole or shaped is None else shaped
    shown = [data[MOST_BYTES * row :][:width] for row in range(rows)]
    held = sum(len(row) - row.count(0) for row in shown)
    return {
        "configured": shaped is not None,
        "rows": rows,
        "colsb": width,
        "outside": TILE_SIZE - data.count(0) - held,
        "data": [_row(row, lane_type) for row in shown],
    }


def _shape(registers: Registers, number: int) -> tuple[int, int] | None:
    """Return the bytes of a row and the rows of a tile; None where no configuration says."""
    if "tilecfg" not in registers:
        return None
    data = registers["tilecfg"].to_bytes(CONFIGURATION_SIZE, "little")
    return shape(data, number) if is_loaded(data) and any(shape(data, number)) else None


def _row(data: bytes, lane_type: str) -> str | list[int | float | str]:
    value = int.from_bytes(data, "little")
    if lane_type != "hex":
        try:
            found = lane.split(value, len(data), lane_type)
        except NumberError:  # rows need not be whole lanes
            pass
        else:
            return [each if math.isfinite(each) else repr(each) for each in found]
    return f"{value:#0{2 + 2 * len(data)}x}"


def different_rows(a: int, b: int) -> Iterator[tuple[int, str, str]]:
    """Yield the rows in which two values of a tile differ, with all their 64 bytes, as hexadecimal numbers."""
    for row in range(MOST_ROWS):
        mine, other = (value >> 8 * MOST_BYTES * row & _ROW for value in (a, b))
        if mine != other:
            yield row, f"{mine:#0{2 + 2 * MOST_BYTES}x}", f"{other:#0{2 + 2 * MOST_BYTES}x}"


def configuration_words(decoded: dict[str, Any]) -> str:
    """Return a configuration in a line: ``palette 1, tmm0-tmm6 16 rows of 64 bytes, tmm7 not configured``."""
    parts = [f"palette {decoded['palette_id']}"]
    if decoded["start_row"]:
        parts.append(f"start_row {decoded['start_row']}")
    shapes = [_shape_words(each) for each in decoded["tiles"]]
    parts += [f"{tiles} {words}" for tiles, words in _neighbours(shapes)]
    if decoded["problem"] is not None:
        parts.append(f"ILLEGAL, a restore makes it initial: {decoded['problem']}")
    return ", ".join(parts)


def tile_words(decoded: dict[str, Any]) -> str:
    """Return the shape of a tile, and what is not shown of it."""
    words = _shape_words(decoded) if decoded["configured"] else "no configuration; all rows"
    if decoded["outside"]:
        words += f"; outside of it {decoded['outside']} not zero"
    return words


def _shape_words(decoded: dict[str, Any]) -> str:
    rows, width = decoded["rows"], decoded["colsb"]
    return f"{rows} row{'s' * (rows != 1)} of {width} bytes" if rows or width else "not configured"


def _neighbours(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield tiles that follow each other with the same words, and these: ``tmm0-tmm3``, or ``tmm0``."""
    runs: list[tuple[int, int, str]] = []
    for index, each in enumerate(words):
        if runs and runs[-1][2] == each:
            runs[-1] = (runs[-1][0], index, each)
        else:
            runs.append((index, index, each))
    for first, last, each in runs:
        yield (f"tmm{first}" if first == last else f"tmm{first}-tmm{last}"), each
