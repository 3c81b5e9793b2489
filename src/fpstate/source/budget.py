"""What reading one source may cost: readers charge what they read and keep, and are refused beyond an allowance.

For a file of n bytes, as it is stored, a reader takes at most 64 MiB + 4 n of memory, the interpreter included, and
time linear in what it reads. What is inflated is streamed: it counts against an allowance of its own, not against n.
An allowance is far above what honest sources need; each says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fpstate.errors import BudgetExceeded

if TYPE_CHECKING:
    from fpstate.source.stream import Stream

_MIB: Final = 1 << 20
MEMORY: Final = 64 * _MIB
MEMORY_SHARE: Final = 4
"""The promise: at most ``MEMORY`` bytes and ``MEMORY_SHARE`` for each byte of the file as it is stored."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """A budget by its name: ``fixed`` units, and ``share`` more for each byte that the file has as it is stored.

    ``most`` bounds both together. ``why`` says where the figure comes from, ``help`` what to try.
    """

    name: str
    fixed: int
    unit: str
    why: str
    help: str
    share: int = 0
    most: int | None = None

    def of(self, stored: int) -> int:
        """Return what a file of ``stored`` bytes may cost."""
        allowed = self.fixed + self.share * stored
        return allowed if self.most is None else min(allowed, self.most)


_DAMAGED: Final = "the file is damaged, or was made to do harm"
_INFLATE: Final = "inflate the file first, and name what comes of it"

COPIED: Final = Allowance(
    "bytes copied of a pipe or device",
    2048 * _MIB,
    "bytes",
    "what may be inflated of a file",
    "write it to a file first, and name that",
)
POSITION: Final = Allowance(
    "length of inflated data",
    2048 * _MIB,
    "bytes",
    "the longest that a compressed source may be",
    _INFLATE,
)
INFLATED: Final = Allowance(
    "bytes inflated in all",
    8192 * _MIB,
    "bytes",
    "a source is inflated at most four times: to find its threads and to read them, which `threads` does twice",
    _INFLATE,
)
MEMBERS: Final = Allowance(
    "compressed members",
    1 << 18,
    "members",
    "2 GiB in the blocks of 64 KiB that bgzip makes are 32,768",
    _INFLATE,
)
WINDOW: Final = Allowance(
    "memory of the decoder",
    24 * _MIB,
    "bytes",
    "xz -6 takes 9 MiB; a larger dictionary is given as long as no more than this of it is filled",
    f"{_INFLATE}: its dictionary is too large for so small a file",
    share=2,
    most=256 * _MIB,
)
SEGMENTS: Final = Allowance(
    "program headers", 1 << 20, "program headers", "vm.max_map_count is 65,530 by default", _DAMAGED
)
NOTE_SEGMENTS: Final = Allowance(
    "note segments",
    1 << 14,
    "note segments",
    "a core has one; the dump of a kernel has one for each of up to 8,192 processors",
    _DAMAGED,
)
NOTES: Final = Allowance(
    "notes", 1 << 19, "notes", "8 for each of 65,536 threads; Linux writes 4 or 5", _DAMAGED
)
DESCRIPTION: Final = Allowance(
    "bytes of one register set or description",
    64 << 10,
    "bytes",
    "no layout that is known exceeds 11,008 bytes, and no CONTEXT around one 13 KiB",
    _DAMAGED,
)
DESCRIPTIONS: Final = Allowance(
    "bytes of descriptions in all",
    1024 * _MIB,
    "bytes",
    "65,536 threads of 11,008 bytes are 688 MiB",
    "name a core of fewer threads",
)
SHARED: Final = Allowance(
    "bytes that are named more than once",
    _MIB,
    "bytes",
    "segments, contexts and notes of real sources do not overlap",
    _DAMAGED,
)
THREADS: Final = Allowance(
    "threads",
    1 << 16,
    "threads",
    "with two mappings for each thread, vm.max_map_count (65,530 by default) ends at 32,765 of them",
    "name a core of fewer threads",
)
STREAMS: Final = Allowance(
    "streams of a minidump", 4096, "streams", "known dumps have fewer than 40", _DAMAGED
)
BATCH: Final = Allowance(
    "contexts read ahead",
    4 * _MIB,
    "bytes",
    "the contexts of a minidump are read by offset and yielded in the order of its threads, so many bytes at a time",
    _DAMAGED,
)
KEPT: Final = Allowance(
    "images kept at once",
    16 * _MIB,
    "bytes",
    "5,800 threads of 832 bytes; a core that is not compressed holds no more than n bytes of images",
    "take one thread after the other: fpstate.source.open.each_thread, or the command line, keeps none",
    share=3,
)
SECTIONS: Final = Allowance(
    "sections of a guest state",
    1 << 16,
    "sections",
    "every other page of the 256 MiB that a file may have makes 32,768",
    _DAMAGED,
)
SECTION: Final = Allowance(
    "bytes of one section besides memory",
    128 << 10,
    "bytes",
    "a register set, or the leaves of a processor",
    _DAMAGED,
)
ALLOWANCES: Final = (
    *(COPIED, POSITION, INFLATED, MEMBERS, WINDOW),
    *(SEGMENTS, NOTE_SEGMENTS, NOTES, DESCRIPTION, DESCRIPTIONS, SHARED, THREADS, KEPT),
    *(STREAMS, BATCH, SECTIONS, SECTION),
)
"""Every budget there is, in the order of docs/sources.md."""


@dataclass(slots=True)
class Budget:
    """What reading ``source``, a file of ``stored`` bytes, has cost so far; what it may cost is in ``ALLOWANCES``."""

    source: str
    stored: int = 0
    spent: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stream: Stream) -> Budget:
        """Return an unspent budget for what reads a stream."""
        return cls(stream.name, stored_size(stream))

    def allowed(self, allowance: Allowance) -> int:
        """Return what the source may cost by one allowance."""
        return allowance.of(self.stored)

    def charge(
        self, allowance: Allowance, amount: int = 1, *, offset: int | None = None, lead: str = ""
    ) -> None:
        """Add to what was spent; raises BudgetExceeded beyond the allowance, as ``hold`` does."""
        spent = self.spent.get(allowance.name, 0) + amount
        self.spent[allowance.name] = spent
        self.hold(allowance, spent, offset=offset, lead=lead)

    def hold(self, allowance: Allowance, found: int, *, offset: int | None = None, lead: str = "") -> None:
        """Raise BudgetExceeded where ``found`` is more than allowed; ``lead`` begins the message: "inflates to"."""
        allowed = self.allowed(allowance)
        if found > allowed:
            what = f"more than {allowed} {allowance.unit}"
            raise BudgetExceeded(
                self.source,
                f"{lead}{what}: {found} (budget: {allowance.name})",
                budget=allowance.name,
                found=found,
                allowed=allowed,
                offset=offset,
                help=allowance.help,
            )


def stored_size(stream: Stream) -> int:
    """Return n: the bytes of the file as it is stored, compressed and without the holes of a sparse file.

    A stream that does not say counts as 0: its length may be a claim, and is not what anything is stored in.
    """
    return int(getattr(stream, "stored", 0))
