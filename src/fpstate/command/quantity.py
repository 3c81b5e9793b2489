"""Quantities on the command line: times and sizes with units, bitmaps, and how they are written."""

from __future__ import annotations

import argparse
import re
from typing import Final

_TIMES: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_SIZES: Final = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20}
QUANTUM_MINIMUM: Final = 20_000
"""Nanoseconds. A tick costs some: where the next one is due before it is over, nothing goes on, nor can be stopped."""
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def nanoseconds(text: str) -> int:
    """Read a time such as ``100us`` or ``1.5ms``; more than 0. Raises ArgumentTypeError."""
    return _positive(text, _TIMES, "a time such as 100us, 1ms or 2s")


def quantum(text: str) -> int:
    """Read a time that a timer can tick in, 20us or more. Raises ArgumentTypeError."""
    value = nanoseconds(text)
    if value < QUANTUM_MINIMUM:
        raise argparse.ArgumentTypeError(
            f"{text!r} is shorter than {duration(QUANTUM_MINIMUM)}: the ticks would leave no time for the guests"
        )
    return value


def size(text: str) -> int:
    """Read a size such as ``64k`` or ``1MiB``; more than 0. Raises ArgumentTypeError."""
    return _positive(text, _SIZES, "a size such as 65536, 64k or 1M")


def count(text: str) -> int:
    """Read a whole number above 0. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def word(text: str) -> int:
    """Read a whole number above 0 of 64 bits. Raises ArgumentTypeError."""
    value = count(text)
    if value >> 64:
        raise argparse.ArgumentTypeError(f"{text!r} does not fit 64 bits")
    return value


def bitmap(text: str) -> int:
    """Read a bitmap of 64 bits such as ``0x2e7``. Raises ArgumentTypeError."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is no bitmap such as 0x2e7")
    return value


def duration(ns: float) -> str:
    """Write a time with three digits and the unit that fits."""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= factor:
            return f"{ns / factor:.3g} {unit}"
    return f"{ns:.0f} ns"


def _positive(text: str, units: dict[str, int], expected: str) -> int:
    found = _NUMBER.fullmatch(text.strip())
    factor = units.get(found[2].lower()) if found else None
    value = int(float(found[1]) * factor) if found and factor else 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value
