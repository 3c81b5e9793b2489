"""Register lists: what is in the registers, told by what it equals."""

from __future__ import annotations

import zlib
from typing import Any

from .host import Host, place_of

NAMED = (0, 1, 2, 5, 6, 7, 17, 18)
"""The components of a register list, in order."""
PKRU = 9
CONTROL, MXCSR_AT = 24, 24
_SHORT = {1: 128, 2: 128, 6: 256, 7: 0}
"""Bytes of components that a save outside 64-bit mode reaches: registers 0 to 7."""
_SLOTS = range(32, 160, 16)
ANYTHING = "LKI"


def contents(component: int, data: bytes) -> bytes:
    """A component's bytes as they are compared: the padding of x87's slots counts as zero."""
    if component:
        return data
    return b"".join(data[start : start + 10] + bytes(6) for start in range(0, len(data), 16))


def digest(component: int, data: bytes) -> int:
    """What stands for a component's bytes."""
    return zlib.crc32(contents(component, data))


def register_list(
    host: Host, saved: bytes, image: bytes | bytearray, pattern: bytes, *, short: bool = False
) -> list[Any]:
    """Tell the registers, saved in the standard format, as MXCSR, PKRU, x87's control and each component.

    Letters say what they equal: L what the image has for them, K the pattern, I the initial state. ``image`` is
    continued by zeros. ``short``: saved outside 64-bit mode.
    """
    padded = bytes(image).ljust(host.size + 64, b"\0")
    control = saved[:CONTROL]
    listed: list[Any] = [
        int.from_bytes(saved[MXCSR_AT : MXCSR_AT + 4], "little"),
        pkru_of(host, saved),
        _letters(control, padded[:CONTROL], pattern[:CONTROL], b"\x7f\x03" + bytes(22)) or control.hex(),
    ]
    layout = host.layout(padded)
    for component in NAMED:
        place = place_of(host.standard, component)
        if place is None or not host.xcr0 >> component & 1:
            listed.append(ANYTHING)
            continue
        start, size = place
        size = _SHORT.get(component, size) if short else size
        if not size:
            listed.append(ANYTHING)
            continue
        found = contents(component, saved[start : start + size])
        there = place_of(layout, component)
        loaded = None if there is None else contents(component, padded[there[0] : there[0] + size])
        kept = contents(component, pattern[start : start + size])
        listed.append(_letters(found, loaded, kept, bytes(size)) or zlib.crc32(found))
    return listed


def pkru_of(host: Host, saved: bytes) -> int:
    """PKRU in a standard image; 0 where there is none."""
    place = place_of(host.standard, PKRU)
    return int.from_bytes(saved[place[0] : place[0] + 4], "little") if place and PKRU in host.standard else 0


def _letters(found: bytes, loaded: bytes | None, kept: bytes, initial: bytes) -> str:
    return "".join(
        letter
        for letter, data in (("L", loaded), ("K", kept), ("I", initial))
        if data is not None and data == found
    )
