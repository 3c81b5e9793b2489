"""AMX: the tile configuration, and what loads, stores and zeroes tiles.

Sources: SDM Vol. 1, 18.2, Vol. 2 for each instruction; the order of #UD and #NM, what start_row refuses, and which
bytes become zeros: measured on Emerald Rapids.
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import Component, mask_of
from fpstate.engine.model.area import Area
from fpstate.engine.model.fault import PAGE, PROTECTION, UNDEFINED, fault
from fpstate.engine.model.machine import Machine
from fpstate.image.tile import (
    CONFIGURATION_SIZE,
    ELEMENT_SIZE,
    MOST_BYTES,
    MOST_ROWS,
    START_ROW_AT,
    configuration_problem,
    restore_defect,
    shape,
)

TILECFG: Final = int(Component.TILECFG)
TILEDATA: Final = int(Component.TILEDATA)

_TILE_SIZE: Final = MOST_ROWS * MOST_BYTES


def ldtilecfg(machine: Machine, data: bytes) -> None:
    """LDTILECFG with 64 bytes: palette 0 initialises, palette 1 configures; tiles become zero. #GP for the rest."""
    machine.use(mask_of(TILECFG))
    _check_memory(data, CONFIGURATION_SIZE, "LDTILECFG")
    data = bytes(data[:CONFIGURATION_SIZE])
    if problem := configuration_problem(data):
        raise fault(PROTECTION, f"LDTILECFG: {problem}", "SDM Vol. 2, LDTILECFG")
    tilerelease(machine)
    if data[0]:
        machine.file.put(TILECFG, data)


def check_contents(data: bytes) -> None:
    """Raise #GP for 64 bytes that the register cannot hold; palette 0 has nothing after it."""
    if defect := restore_defect(data):
        raise fault(PROTECTION, f"TILECFG: {defect.text}", "SDM Vol. 2, LDTILECFG")


def sttilecfg(machine: Machine, area: Area) -> None:
    """STTILECFG: the configuration into the first 64 bytes; zeros for the initial one."""
    machine.use(mask_of(TILECFG))
    _check_memory(area, CONFIGURATION_SIZE, "STTILECFG")
    area[:CONFIGURATION_SIZE] = machine.file.values[TILECFG]


def tilerelease(machine: Machine) -> None:
    """TILERELEASE: configuration and tiles become initial."""
    machine.use(mask_of(TILECFG))
    machine.file.initialise(TILECFG)
    machine.file.initialise(TILEDATA)


def tilezero(machine: Machine, tile: int) -> None:
    """TILEZERO: all of a tile, and start_row, become zero."""
    _configured(machine, tile)
    machine.held_back(mask_of(TILEDATA))
    _put(machine, tile, bytes(_TILE_SIZE))


def tileloadd(machine: Machine, tile: int, data: bytes, stride: int) -> None:
    """TILELOADD: rows from start_row on, each ``stride`` bytes after the last; what is outside them becomes zero."""
    start_row, rows, width = _addressable(machine, tile)
    _check_memory(data, (rows - 1) * stride + width, "TILELOADD")
    kept = machine.file.values[TILEDATA][tile * _TILE_SIZE :][: start_row * MOST_BYTES]
    loaded = (
        data[row * stride : row * stride + width].ljust(MOST_BYTES, b"\0") for row in range(start_row, rows)
    )
    _put(machine, tile, (kept + b"".join(loaded)).ljust(_TILE_SIZE, b"\0"))


def tilestored(machine: Machine, tile: int, area: Area, stride: int) -> None:
    """TILESTORED: rows from start_row on, each ``stride`` bytes after the last."""
    start_row, rows, width = _addressable(machine, tile)
    _check_memory(area, (rows - 1) * stride + width, "TILESTORED")
    value = machine.file.values[TILEDATA][tile * _TILE_SIZE :]
    for row in range(start_row, rows):
        area[row * stride : row * stride + width] = value[row * MOST_BYTES :][:width]
    _restart(machine)


def _check_memory(area: Area | bytes, needed: int, mnemonic: str) -> None:
    """Raise #PF where memory ends before what the instruction touches."""
    if len(area) < needed:
        reason = f"{mnemonic}: bytes up to {needed} are touched, the memory has {len(area)}"
        raise fault(PAGE, reason, f"SDM Vol. 2, {mnemonic}")


def _configured(machine: Machine, tile: int) -> tuple[int, int]:
    """Return the bytes of a row and the rows of a tile; raises #UD for one that is not configured."""
    machine.use(mask_of(TILECFG))
    if missing := mask_of(TILEDATA) & ~machine.xcr0:
        raise fault(UNDEFINED, f"XCR0 {machine.xcr0:#x} lacks {missing:#x}", "SDM Vol. 1, 13.3")
    configuration = machine.file.values[TILECFG]
    width, rows = shape(configuration, tile)
    if not configuration[0] or not rows:
        raise fault(UNDEFINED, f"tile {tile} is not configured", "SDM Vol. 2, TILEZERO")
    return width, rows


def _addressable(machine: Machine, tile: int) -> tuple[int, int, int]:
    """Return start_row, rows, and the bytes of a row; raises #UD for the width, #NM, #UD for the row, in that order."""
    width, rows = _configured(machine, tile)
    if width % ELEMENT_SIZE:
        raise fault(
            UNDEFINED, f"tile {tile} has rows of {width} bytes, not whole words", "SDM Vol. 2, TILELOADD"
        )
    machine.held_back(mask_of(TILEDATA))
    start_row = machine.file.values[TILECFG][START_ROW_AT]
    if start_row >= rows:
        raise fault(
            UNDEFINED, f"start_row {start_row}, and tile {tile} has {rows} rows", "SDM Vol. 2, TILELOADD"
        )
    return start_row, rows, width


def _put(machine: Machine, tile: int, value: bytes) -> None:
    tiles, start = machine.file.values[TILEDATA], tile * _TILE_SIZE
    machine.file.write(TILEDATA, tiles[:start] + value + tiles[start + _TILE_SIZE :])
    _restart(machine)


def _restart(machine: Machine) -> None:
    """Begin with row 0 next time."""
    configuration = machine.file.values[TILECFG]
    if configuration[START_ROW_AT]:
        machine.file.put(TILECFG, configuration[:START_ROW_AT] + b"\0" + configuration[START_ROW_AT + 1 :])
