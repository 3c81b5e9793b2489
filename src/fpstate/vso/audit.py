"""Does anything leak? Look for what one context keeps in its registers wherever it must not be.

A canary is a context whose every register holds a pattern of its own. The patterns are 64-bit random words, so a
word found elsewhere came from that context. What is looked through: the buffers of every other VSO, the free memory
of the pool, and what a fresh context reads from its registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fpstate.vso.manager import Manager
from fpstate.vso.vso import Vso

WORD = 8
_DISTINCT = 1 << 32
"""Words whose upper half is empty are no evidence: control words and exponents look like that."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A word of ``owner`` at ``offset`` bytes into ``place``, where it has no business."""

    owner: str
    place: str
    offset: int
    word: int

    def __str__(self) -> str:
        return f"{self.word:#018x} of {self.owner} at byte {self.offset} of {self.place}"


@dataclass(slots=True)
class AuditReport:
    """``leaks`` that were found, contexts that were ``damaged`` (a lost register is the leak's other half), and how
    much was looked through."""

    leaks: list[Leak] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    canaries: int = 0
    searched_bytes: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.leaks and not self.damaged

    @property
    def leaked_bytes(self) -> int:
        """Bytes of contexts that were found where they must not be."""
        return WORD * len(self.leaks)

    def __iadd__(self, other: AuditReport) -> AuditReport:
        self.leaks += other.leaks
        self.damaged += other.damaged
        self.canaries += other.canaries
        self.searched_bytes += other.searched_bytes
        return self


class Canaries:
    """Whose word is whose. ``patterns``: owner to the values of its registers, of any width.

    ``keys``: owner to its PKRU. A PKRU is half a word, and told only where it is read as a PKRU.
    """

    def __init__(self, patterns: Mapping[str, Iterable[int]], keys: Mapping[str, int] | None = None) -> None:
        self.owners: dict[int, str] = {}
        self.keys = {value: owner for owner, value in (keys or {}).items()}
        shared = set()
        for owner, values in patterns.items():
            for word in _words(values):
                if self.owners.setdefault(word, owner) != owner:
                    shared.add(word)
        for word in shared:
            del self.owners[word]

    def search(
        self, place: str, data: bytes | bytearray | memoryview, *, owner: str | None = None
    ) -> AuditReport:
        """Look through the aligned words of ``data``, which belongs to ``owner`` (None: to nobody)."""
        view = memoryview(data)
        view = view[: len(view) - len(view) % WORD]
        report = AuditReport(searched_bytes=len(view))
        for index, word in enumerate(view.cast("Q")):
            found = self.owners.get(word)
            if found is not None and found != owner:
                report.leaks.append(Leak(found, place, index * WORD, word))
        return report

    def search_values(
        self, place: str, registers: Mapping[str, int], *, owner: str | None = None
    ) -> AuditReport:
        """Look through register values, as a fresh context read them."""
        report = AuditReport()
        for name, value in registers.items():
            where = f"{name} of {place}"
            report += self.search(where, _bytes(value), owner=owner)
            keeper = self.keys.get(value, owner) if name == "pkru" else owner
            if keeper is not None and keeper != owner:
                report.leaks.append(Leak(keeper, where, 0, value))
        return report

    def search_manager(self, manager: Manager, owners: Mapping[Vso, str]) -> AuditReport:
        """Look through every buffer of a manager, parked and grown ones too, and its pool's free memory.

        No engine may be running on its VSOs. ``owners`` names the VSOs that may hold an owner's words.
        """
        report = AuditReport()
        for number, vso in enumerate(manager.vsos()):
            if vso.buffer:
                owner = owners.get(vso)
                place = f"the buffer of {owner or f'VSO {number}'}"
                report += self.search(place, vso.buffer.view, owner=owner)
        for free in manager.pool.free_memory():
            report += self.search("free pool memory", free)
        return report


def _bytes(value: int) -> bytes:
    size = max(1, -(-value.bit_length() // 64)) * WORD
    return value.to_bytes(size, "little")


def _words(values: Iterable[int]) -> Iterable[int]:
    for value in values:
        for word in memoryview(_bytes(value)).cast("Q"):
            if word >= _DISTINCT:
                yield word
