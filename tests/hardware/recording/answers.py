"""What sequences did, in the form of the files."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from fpstate.arch import Component

from .child import Record
from .host import UNUSED, Host, place_of
from .inputs import difference
from .registers import digest
from .sequences import READS, RESTORES, SAVES, STORES, Operation

_LEGACY_LINES = 32
_FIRST_USES = frozenset(("tilezero", "tileloadd", "tilestored"))
_PKRU_IN_USE = 1 << Component.PKRU


@dataclass(frozen=True)
class Outcome:
    """What one sequence did: a record for each operation, and the area after each save."""

    records: tuple[Record, ...]
    saved: tuple[bytes, ...]


def area_of(operation: Operation) -> int:
    """The number of the area that a save or a store writes."""
    return int(operation[2] if operation[0] == "tilestored" else operation[1])


def answers(
    host: Host, operations: list[Operation], start: list[bytes], outcome: Outcome, pool: bytes, *, whole: bool
) -> list[Any]:
    """Put an outcome into the form of the files; ``whole``: with every byte that saves changed."""
    areas = [bytearray(area) for area in start]
    saved = iter(outcome.saved)
    in_use = 0
    told: list[Any] = []
    for operation, record in zip(operations, outcome.records, strict=True):
        name = operation[0]
        answer: dict[str, Any] = {}
        if record.fault:
            answer["f"] = record.fault
        if record.in_use != in_use:
            answer["x"] = in_use = record.in_use
        if name in READS and not record.fault:
            answer["v"] = record.value
        if record.pkru & 3:
            answer["k"] = record.pkru
        if name == "edit":
            data = bytes.fromhex(operation[3])
            areas[operation[1]][operation[2] : operation[2] + len(data)] = data
        elif name == "copy":
            _, area, offset, first, length = operation
            areas[area][offset : offset + length] = pool[first : first + length]
        elif name in SAVES or name in STORES:
            after = next(saved)
            number = area_of(operation)
            if not record.fault:
                answer["s"] = _save(host, operation, bytes(areas[number]), after, whole=whole)
            areas[number] = bytearray(after)
        told.append(answer or 0)
    return told


def _save(host: Host, operation: Operation, before: bytes, after: bytes, *, whole: bool) -> dict[str, Any]:
    if before == after:
        return {"u": 1}
    answer: dict[str, Any] = {}
    if operation[0] in SAVES:
        answer = _changes(host, operation[0], before[operation[3] :], after[operation[3] :])
    answer["a"] = zlib.crc32(after)
    if whole:
        answer["d"] = difference(before, after)
    return answer


def _changes(host: Host, name: str, before: bytes, after: bytes) -> dict[str, Any]:
    """What a save changed of header, legacy lines and components."""
    answer: dict[str, Any] = {}
    legacy_only = name.startswith("fx")
    if before[512:528] != after[512:528] and not legacy_only:
        answer["h"] = [int.from_bytes(after[at : at + 8], "little") for at in (512, 520)]
    if before[:_LEGACY_LINES] != after[:_LEGACY_LINES]:
        answer["l"] = after[:_LEGACY_LINES].hex()
    layout = host.layout(after) if name.startswith(("xsavec", "xsaves")) else host.standard
    changed: dict[str, int] = {}
    for component in (0, 1) if legacy_only else (0, 1, *(place.component for place in layout.places)):
        start, size = place_of(layout, component) or (0, 0)
        old, new = before[start : start + size], after[start : start + size]
        if old != new:
            narrow = component == Component.PKRU
            changed[str(component)] = int.from_bytes(new[:4], "little") if narrow else digest(component, new)
    if changed:
        answer["c"] = changed
    return answer


def comes_in_use_by_itself(operations: list[Operation], outcome: Outcome, permission: int) -> bool:
    """Whether PKRU came in use where nothing but a switch to another task can have done it.

    The kernel loads it too where it lets a thread have tiles on their first use.
    """
    allowed = RESTORES | {"wrpkru"} | (_FIRST_USES if permission == UNUSED else frozenset())
    before = 0
    for (name, *_), record in zip(operations, outcome.records, strict=True):
        new = record.in_use & ~before & _PKRU_IN_USE
        if new and not record.fault and name not in allowed:
            return True
        before = record.in_use | (_PKRU_IN_USE if record.pkru & 3 else 0)
    return False
