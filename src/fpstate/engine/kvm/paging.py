"""Page tables of four levels, in 4 KiB pages (SDM vol. 3, 4.5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fpstate.engine.memory import PAGE_SIZE

PRESENT, WRITABLE, USER = 1 << 0, 1 << 1, 1 << 2
NO_EXECUTE = 1 << 63
_INDEX_BITS, _LEVELS = 9, 4
_ENTRY_SIZE = 8
_LINK = PRESENT | WRITABLE | USER
"""Tables link with every right; the entry of the page decides."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """``size`` bytes of virtual memory that are physical memory, with the flags of their entries."""

    virtual: int
    physical: int
    size: int
    flags: int


def table_pages(mappings: Iterable[Mapping]) -> int:
    """Return how many pages the tables for these mappings take."""
    return len(_tables(_entries(mappings)))


def page_tables(mappings: Iterable[Mapping], physical: int) -> bytes:
    """Return the tables, to be placed at ``physical``; the root comes first."""
    entries = _entries(mappings)
    numbers = {key: number for number, key in enumerate(_tables(entries))}
    memory = bytearray(len(numbers) * PAGE_SIZE)
    for (level, prefix), number in numbers.items():
        if level < _LEVELS - 1:
            parent = numbers[level + 1, prefix >> _INDEX_BITS]
            _set(memory, parent, prefix, physical + number * PAGE_SIZE | _LINK)
    for page, entry in entries.items():
        _set(memory, numbers[0, page >> _INDEX_BITS], page, entry)
    return bytes(memory)


def _entries(mappings: Iterable[Mapping]) -> dict[int, int]:
    """Virtual page number to the entry of the lowest level."""
    return {
        (mapping.virtual + offset) // PAGE_SIZE: mapping.physical + offset | mapping.flags | PRESENT
        for mapping in mappings
        for offset in range(0, mapping.size, PAGE_SIZE)
    }


def _tables(entries: Iterable[int]) -> list[tuple[int, int]]:
    """Every table as its level (0: of pages) and what it serves; the root first."""
    needed = {(level, page >> _INDEX_BITS * (level + 1)) for page in entries for level in range(_LEVELS)}
    return sorted(needed, reverse=True)


def _set(memory: bytearray, table: int, index: int, entry: int) -> None:
    start = table * PAGE_SIZE + index % (1 << _INDEX_BITS) * _ENTRY_SIZE
    memory[start : start + _ENTRY_SIZE] = entry.to_bytes(_ENTRY_SIZE, "little")
