"""Does anything leak? Look for what one context keeps in its registers wherever it must not be.

A canary is a context whose every register holds a pattern of its own. The patterns are 64-bit random words, so a
word found elsewhere came from that context. What is looked through: the buffers of every other VSO, and places that
must be empty, in which a single byte is a leak: the free memory of the pool, memory through which an engine passes
states, and the registers of a fresh context.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fpstate.errors import PoolExhausted
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import Exit, ExitKind
from fpstate.vso.vso import Vso

WORD = 8
_WORD_MASK = (1 << 8 * WORD) - 1
UNKNOWN = "an unknown context"
"""Whose a leak is that no canary is known by."""
_DISTINCT = 1 << 32
"""Words whose upper half is empty are no evidence: control words and exponents look like that."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A word of ``owner`` at ``offset`` bytes into ``place``, where it has no business.

    Where a place must be empty ``word`` is whatever bytes lie there, from the first that does not belong there on, and
    ``size`` how many of them do not; ``owner`` may be ``UNKNOWN`` then.
    """

    owner: str
    place: str
    offset: int
    word: int
    size: int = WORD

    def __str__(self) -> str:
        if self.size == WORD:
            return f"{self.word:#018x} of {self.owner} at byte {self.offset} of {self.place}"
        count = f"{self.size} byte{'s' * (self.size > 1)}"
        return f"{count} of {self.owner} at byte {self.offset} of {self.place}: {self.word:#x}"


@dataclass(slots=True)
class AuditReport:
    """``leaks`` that were found, contexts that were ``damaged`` (a lost register is the leak's other half), and how
    much was looked through.

    ``unjudged`` are contexts that did not get to an end, for lack of time or memory: nothing is known of their
    registers. ``components`` is the mask of those that canaries filled and fresh contexts were searched for;
    ``unsearched`` names what else contexts can hold here, and why it was not.
    """

    leaks: list[Leak] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    canaries: int = 0
    searched_bytes: int = 0
    unjudged: list[str] = field(default_factory=list)
    components: int = 0
    unsearched: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether anything leaked or was damaged."""
        return bool(self.leaks or self.damaged)

    @property
    def clean(self) -> bool:
        """Whether nothing was found, and every context judged."""
        return not self.found and not self.unjudged

    @property
    def leaked_bytes(self) -> int:
        """Bytes of contexts that were found where they must not be."""
        return sum(leak.size for leak in self.leaks)

    def __iadd__(self, other: AuditReport) -> AuditReport:
        self.leaks += other.leaks
        self.damaged += other.damaged
        self.canaries += other.canaries
        self.searched_bytes += other.searched_bytes
        self.unjudged += other.unjudged
        self.components |= other.components
        self.unsearched |= other.unsearched
        return self

    def judge(self, who: str, exit: Exit | None) -> None:
        """Report a context that did not finish: as damaged, or where it ran out of time or memory as not judged."""
        if exit is None or exit.kind is ExitKind.EXPIRED or isinstance(exit.error, PoolExhausted):
            self.unjudged.append(f"{who}: {exit or 'did not end'}")
        else:
            self.damaged.append(f"{who}: {exit}")


class Canaries:
    """Whose word is whose. ``patterns``: owner to its registers, name to value, of any width.

    Words tell by themselves, wherever they are found; bytes and half words, such as PKRU's, only in the register that
    they come from.
    """

    def __init__(self, patterns: Mapping[str, Mapping[str, int]]) -> None:
        self.owners: dict[int, str] = {}
        self.patterns = patterns
        shared = set()
        for owner, pattern in patterns.items():
            for word in _words(pattern.values()):
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

    def search_empty(self, place: str, data: bytes | bytearray | memoryview) -> AuditReport:
        """Look through memory that must be all zeros; a ragged end is left out."""
        view = memoryview(data)
        view = view[: len(view) - len(view) % WORD]
        report = AuditReport(searched_bytes=len(view))
        if bytes(view).strip(b"\0"):
            for index, word in enumerate(view.cast("Q")):
                if word:
                    report.leaks.append(self._leak(place, index, word))
        return report

    def search_fresh(
        self, place: str, registers: Mapping[str, int], initial: Mapping[str, int]
    ) -> AuditReport:
        """Look through the registers that a fresh context read: each must have its ``initial`` value."""
        report = AuditReport()
        for name, value in registers.items():
            size = max(len(_bytes(value)), len(_bytes(initial[name])))
            report.searched_bytes += size
            keeper = (
                self._keeper(name, value, _different(value, initial[name])) if value != initial[name] else ""
            )
            for index in range(size // WORD if keeper else 0):
                word, expected = (each >> 64 * index & _WORD_MASK for each in (value, initial[name]))
                if word != expected:
                    report.leaks.append(self._leak(f"{name} of {place}", index, word, expected, keeper))
        return report

    def _leak(self, place: str, index: int, word: int, expected: int = 0, keeper: str = UNKNOWN) -> Leak:
        """Return what is wrong with a word: all of it where it is known, else the bytes that differ."""
        if word in self.owners:
            return Leak(self.owners[word], place, WORD * index, word)
        wrong = [at for at in range(WORD) if (word ^ expected) >> 8 * at & 0xFF]
        found = word >> 8 * wrong[0] & (1 << 8 * (wrong[-1] - wrong[0] + 1)) - 1
        return Leak(keeper, place, WORD * index + wrong[0], found, len(wrong))

    def _keeper(self, name: str, value: int, mask: int) -> str:
        """Return who has these bits of a register, the first that has them all; vectors go by any of their names."""
        names = [kind + name[3:] for kind in ("zmm", "ymm", "xmm")] if name[1:3] == "mm" else []
        for owner, pattern in self.patterns.items():
            its = next((pattern[each] for each in (name, *names) if each in pattern), None)
            if its is not None and not (its ^ value) & mask:
                return owner
        return UNKNOWN

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
            report += self.search_empty("free pool memory", free)
        return report


def _bytes(value: int) -> bytes:
    size = max(1, -(-value.bit_length() // 64)) * WORD
    return value.to_bytes(size, "little")


def _different(value: int, other: int) -> int:
    """Return a mask of the bytes in which two values differ."""
    differing = _bytes(value ^ other)
    return int.from_bytes(bytes(0xFF if byte else 0 for byte in differing), "little")


def _words(values: Iterable[int]) -> Iterable[int]:
    for value in values:
        for word in memoryview(_bytes(value)).cast("Q"):
            if word >= _DISTINCT:
                yield word
