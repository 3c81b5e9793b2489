"""The parts of a Windows minidump that matter here, taken for hostile: streams, threads, and the places of contexts.

Read here and not by a library: those there are trust every count in the file, read all of its streams, and know
neither MINIDUMP_MISC_INFO_5 nor what lies behind a CONTEXT.

Source: ``minidumpapiset.h``. A location is a size and an offset from the start of the file (RVA).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from fpstate.errors import SourceError
from fpstate.source.budget import BATCH, DESCRIPTION, DESCRIPTIONS, SHARED, STREAMS, THREADS, Budget
from fpstate.source.stream import Stream, read_exactly

MAGIC: Final = b"MDMP"
_VERSION: Final = 0xA793
_HEADER: Final = struct.Struct("<4sIIIIIQ")
_ENTRY: Final = struct.Struct("<III")
_THREAD_LIST, _EXCEPTION, _SYSTEM_INFO, _MISC_INFO = 3, 6, 7, 15
_NAMES: Final = {
    _THREAD_LIST: "ThreadListStream",
    _EXCEPTION: "ExceptionStream",
    _SYSTEM_INFO: "SystemInfoStream",
    _MISC_INFO: "MiscInfoStream",
}
_THREAD: Final = struct.Struct("<I36xII")
_EXCEPTION_PLACE: Final = struct.Struct("<I156xII")
_MACHINES: Final[dict[int, Literal["x86-64", "i386"]]] = {0: "i386", 9: "x86-64"}
_XSTATE_AT: Final = 832
"""``MINIDUMP_MISC_INFO_5.XStateData``: XSTATE_CONFIG_FEATURE_MSC_INFO, 528 bytes."""
_XSTATE: Final = struct.Struct("<IIQ128I")
_COMPACTED: Final = 1 << 63
_OBJECTS: Final = 2 << 10
"""Bytes that Python takes for a thread in a batch besides its context."""


class Location(NamedTuple):
    """Where something lies in the file, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class XstateConfig:
    """What the system says of its extended state: component to (offset in an XSAVE image, size); and the format."""

    compacted: bool
    places: dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Minidump:
    """A minidump's streams by type, and what kind of machine it is of; ``budget`` is what reading it costs."""

    stream: Stream
    streams: dict[int, Location]
    machine: Literal["x86-64", "i386"]
    budget: Budget

    def threads(self) -> ThreadList:
        """Return number and context of each thread; raises SourceError where the list claims too much."""
        if _THREAD_LIST not in self.streams:
            raise SourceError(self.stream.name, "no ThreadListStream: no thread is in this dump", offset=0)
        place = self.streams[_THREAD_LIST]
        (count,) = struct.unpack("<I", read_exactly(self.stream, place.offset, 4, "the number of threads"))
        # Some writers align the entries to eight bytes.
        start = 8 if place.size == 8 + count * _THREAD.size else 4
        if start + count * _THREAD.size > place.size:
            raise SourceError(
                self.stream.name,
                f"{count} threads of {_THREAD.size} bytes in a stream of {place.size}",
                offset=place.offset,
            )
        self.budget.hold(THREADS, count, offset=place.offset)
        return ThreadList(
            read_exactly(self.stream, place.offset + start, count * _THREAD.size, "the list of threads")
        )

    def exception(self) -> tuple[int, Location] | None:
        """Return the thread that raised the exception of which the dump was made, and its context there."""
        place = self.streams.get(_EXCEPTION)
        if place is None:
            return None
        data = read_exactly(self.stream, place.offset, _EXCEPTION_PLACE.size, "the exception")
        tid, size, offset = _EXCEPTION_PLACE.unpack(data)
        return (tid, Location(offset, size)) if size else None

    def xstate_config(self) -> XstateConfig | None:
        """Return what MINIDUMP_MISC_INFO_5 says of the extended state; None where it says nothing."""
        place = self.streams.get(_MISC_INFO)
        if place is None or place.size < _XSTATE_AT + _XSTATE.size:
            return None
        data = read_exactly(
            self.stream, place.offset + _XSTATE_AT, _XSTATE.size, "the description of the state"
        )
        size, _, enabled, *numbers = _XSTATE.unpack(data)
        if size < _XSTATE.size or not enabled:
            return None
        places = {
            number: (numbers[2 * number], numbers[2 * number + 1])
            for number in range(2, 63)
            if enabled >> number & 1 and numbers[2 * number + 1]
        }
        return XstateConfig(bool(enabled & _COMPACTED), places)

    def check_contexts(self, places: Iterable[Location]) -> None:
        """Hold the contexts of all threads against each other and their budgets before any is read.

        Raises SourceError for contexts that overlap, and BudgetExceeded for one of more than 64 KiB and where threads
        share more of them than real dumps do.
        """
        end, last = 0, None
        for offset, size in map(_unpacked, sorted(map(_packed, places))):
            lead = f"a context that claims {size} bytes, "
            self.budget.hold(DESCRIPTION, size, offset=offset, lead=lead)
            if (offset, size) == last:
                self.budget.charge(SHARED, size, offset=offset, lead="threads share contexts of ")
            elif offset < end and size:
                raise SourceError(
                    self.stream.name, f"a context begins before another one ends at {end}", offset=offset
                )
            end, last = max(end, offset + size), (offset, size)

    def contexts(self, places: Iterable[Location]) -> Iterator[tuple[Location, bytes]]:
        """Yield the bytes of each context once, by offset, so that a compressed dump is inflated forwards.

        Raises SourceError for contexts that the file does not hold.
        """
        for place in map(Location._make, map(_unpacked, sorted(set(map(_packed, places))))):
            self.budget.charge(DESCRIPTIONS, place.size, offset=place.offset)
            yield place, read_exactly(self.stream, place.offset, place.size, "a context")


@dataclass(frozen=True, slots=True)
class ThreadList:
    """The rows of ThreadListStream; iterated, the number and the context of each thread."""

    rows: bytes

    def __iter__(self) -> Iterator[tuple[int, Location]]:
        for tid, size, offset in _THREAD.iter_unpack(self.rows):
            yield tid, Location(offset, size)

    def batches(self) -> Iterator[list[tuple[int, Location]]]:
        """Yield the threads in order, in lists whose contexts take a few MiB together."""
        batch: list[tuple[int, Location]] = []
        taken = 0
        for tid, place in self:
            batch.append((tid, place))
            taken += place.size + _OBJECTS
            if taken > BATCH.fixed:
                yield batch
                batch, taken = [], 0
        if batch:
            yield batch


def _packed(place: Location) -> int:
    """Return a place as one number, by which places sort; both its numbers have 32 bits."""
    return place.offset << 32 | place.size


def _unpacked(number: int) -> tuple[int, int]:
    return number >> 32, number & 0xFFFFFFFF


def check_head(stream: Stream) -> None:
    """Raise SourceError where the first 32 bytes say that this is no minidump that is read, with the byte."""
    _header(stream, Budget.of(stream))


def read_minidump(stream: Stream) -> Minidump:
    """Read header, directory and machine; raises SourceError for what is no x86 minidump, with the byte."""
    budget = Budget.of(stream)
    count, directory = _header(stream, budget)
    data = read_exactly(stream, directory, count * _ENTRY.size, "the stream directory")
    streams: dict[int, Location] = {}
    for index, (kind, size, offset) in enumerate(_ENTRY.iter_unpack(data)):
        if kind not in _NAMES or kind in streams:
            continue
        if stream.size is not None and offset + size > stream.size:
            raise SourceError(
                stream.name,
                f"{_NAMES[kind]} ends at {offset + size}, the file at {stream.size}",
                offset=directory + index * _ENTRY.size,
                help="the file may have been cut short",
            )
        streams[kind] = Location(offset, size)
    return Minidump(stream, streams, _machine(stream, streams), budget)


def _header(stream: Stream, budget: Budget) -> tuple[int, int]:
    """Return how many streams there are, and where their directory begins."""
    magic, version, count, directory, *_ = _HEADER.unpack(read_exactly(stream, 0, _HEADER.size, "the header"))
    if magic != MAGIC:
        raise SourceError(stream.name, "is no minidump", offset=0)
    if version & 0xFFFF != _VERSION:
        raise SourceError(stream.name, f"a minidump of version {version & 0xFFFF:#x}", offset=4)
    budget.hold(STREAMS, count, offset=8, lead=f"{count} streams, ")
    return count, directory


def _machine(stream: Stream, streams: dict[int, Location]) -> Literal["x86-64", "i386"]:
    if _SYSTEM_INFO not in streams:
        raise SourceError(
            stream.name, "no SystemInfoStream: what machine it is of, nobody can tell", offset=0
        )
    at = streams[_SYSTEM_INFO].offset
    number = int.from_bytes(read_exactly(stream, at, 2, "the system information"), "little")
    if number not in _MACHINES:
        raise SourceError(
            stream.name,
            f"processor architecture {number} is neither x86 (0) nor AMD64 (9)",
            offset=at,
        )
    return _MACHINES[number]
