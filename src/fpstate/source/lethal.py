"""Values that the kernel takes and reads back, and that end the thread which runs with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.image import Registers

_KEY_0: Final = {
    1: ("access", "access"),
    2: ("writing", "write"),
    3: ("access", "access"),
}
"""Bits 0 and 1 of PKRU: access-disable and write-disable of key 0 (SDM vol. 3, 4.6.2)."""
_EXCEPTIONS: Final = ("invalid", "denormal", "divide-by-zero", "overflow", "underflow", "precision")
_ALL: Final = 0x3F
_TILES, _COLSB_AT, _ROWS_AT = 8, 16, 48
_MXCSR_MASKS: Final = 7


def dangers(old: Registers, new: Registers) -> Iterator[str]:
    """Yield how a thread is bound to end that goes on with ``new`` where it had ``old``."""
    key = _value(new, "pkru") & 3
    if key and key != _value(old, "pkru") & 3:
        what, deed = _KEY_0[key]
        yield (
            f"pkru {new['pkru']:#x} forbids {what} with key 0, which ordinary memory has, stacks too: the thread gets"
            f" SIGSEGV (SEGV_PKUERR) at its next {deed}"
        )
    if pending := _x87_pending(new) & ~_x87_pending(old):
        yield (
            f"fstat {new['fstat']:#x} has flags that fctrl {new['fctrl']:#x} unmasks ({_names(pending)}): the thread"
            " gets SIGFPE at its next x87 instruction that waits (#MF, SDM vol. 1, 8.6)"
        )
    if taken := _tiles_taken(_value(old, "tilecfg"), _value(new, "tilecfg")):
        tiles = ", ".join(f"tmm{tile}" for tile in taken)
        yield (
            f"tilecfg leaves {tiles} without rows or columns, which the configuration in use has: the thread gets"
            " SIGILL at its next instruction with such a tile (#UD), unless it loads another configuration before"
        )


def unmasked(old: Registers, new: Registers) -> Iterator[str]:
    """Yield which exceptions a change unmasks: they end a thread that has one and no handler for SIGFPE.

    Flags of MXCSR that are raised already raise nothing (SDM vol. 1, 10.2.3.1).
    """
    for name, shift in (("mxcsr", _MXCSR_MASKS), ("fctrl", 0)):
        if found := _value(old, name) >> shift & ~(_value(new, name) >> shift) & _ALL:
            yield (
                f"{name}: unmasks {_names(found)}: the next such result is SIGFPE, which ends a program without"
                " a handler"
            )


def _tiles_taken(old: int, new: int) -> list[int]:
    """The tiles that one configuration has and another has not (SDM vol. 1, 18.2: colsb from byte 16, rows from 48)."""
    return [tile for tile in range(_TILES) if _has_tile(old, tile) and not _has_tile(new, tile)]


def _has_tile(configuration: int, tile: int) -> bool:
    columns = configuration >> 8 * (_COLSB_AT + 2 * tile) & 0xFFFF
    rows = configuration >> 8 * (_ROWS_AT + tile) & 0xFF
    return bool(configuration & 0xFF and columns and rows)


def _x87_pending(registers: Registers) -> int:
    return _value(registers, "fstat") & ~_value(registers, "fctrl") & _ALL


def _value(registers: Registers, name: str) -> int:
    return registers.get(name, 0)


def _names(bits: int) -> str:
    return ", ".join(name for bit, name in enumerate(_EXCEPTIONS) if bits >> bit & 1)
