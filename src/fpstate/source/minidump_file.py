"""The parts of a Windows minidump that matter here, taken for hostile: streams, threads, and the places of contexts.

Read here and not by a library: those there are trust every count in the file, read all of its streams, and know
neither MINIDUMP_MISC_INFO_5 nor what lies behind a CONTEXT.

Source: ``minidumpapiset.h``. A location is a size and an offset from the start of the file (RVA).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fpstate.errors import SourceError
from fpstate.source.stream import Stream, read_exactly

MAGIC: Final = b"MDMP"
CONTEXT_LIMIT: Final = 64 << 10
"""Bytes of a context that anyone looks at; the largest known, with AMX, has less than 13 KiB."""

_VERSION: Final = 0xA793
_HEADER: Final = struct.Struct("<4sIIIIIQ")
_ENTRY: Final = struct.Struct("<III")
_STREAMS_LIMIT: Final = 4096
_THREADS_LIMIT: Final = 1 << 16
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


@dataclass(frozen=True, slots=True)
class Location:
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
    """A minidump's streams by type, and what kind of machine it is of."""

    stream: Stream
    streams: dict[int, Location]
    machine: Literal["x86-64", "i386"]

    def threads(self) -> Iterator[tuple[int, Location]]:
        """Yield number and context of each thread in the list; raises SourceError where it claims too much."""
        if _THREAD_LIST not in self.streams:
            raise SourceError(self.stream.name, "no ThreadListStream: no thread is in this dump", offset=0)
        place = self.streams[_THREAD_LIST]
        (count,) = struct.unpack("<I", read_exactly(self.stream, place.offset, 4, "the number of threads"))
        # Some writers align the entries to eight bytes.
        start = 8 if place.size == 8 + count * _THREAD.size else 4
        if count > _THREADS_LIMIT or start + count * _THREAD.size > place.size:
            raise SourceError(
                self.stream.name,
                f"{count} threads of {_THREAD.size} bytes in a stream of {place.size}",
                offset=place.offset,
            )
        data = read_exactly(self.stream, place.offset + start, count * _THREAD.size, "the list of threads")
        for tid, size, offset in _THREAD.iter_unpack(data):
            yield tid, Location(offset, size)

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

    def contexts(self, places: Iterable[Location]) -> Iterator[tuple[Location, bytes]]:
        """Yield the bytes of each context once, by offset, so that a compressed dump is inflated once for all.

        Raises SourceError for contexts of more than 64 KiB, that overlap, or that the file does not hold.
        """
        end = 0
        for place in sorted(set(places), key=lambda place: (place.offset, place.size)):
            if place.size > CONTEXT_LIMIT:
                raise SourceError(
                    self.stream.name, f"a context that claims {place.size} bytes", offset=place.offset
                )
            if place.offset < end and place.size:
                raise SourceError(
                    self.stream.name,
                    f"a context begins before another one ends at {end}",
                    offset=place.offset,
                )
            end = max(end, place.offset + place.size)
            yield place, read_exactly(self.stream, place.offset, place.size, "a context")


def read_minidump(stream: Stream) -> Minidump:
    """Read header, directory and machine; raises SourceError for what is no x86 minidump, with the byte."""
    magic, version, count, directory, *_ = _HEADER.unpack(read_exactly(stream, 0, _HEADER.size, "the header"))
    if magic != MAGIC:
        raise SourceError(stream.name, "is no minidump", offset=0)
    if version & 0xFFFF != _VERSION:
        raise SourceError(stream.name, f"a minidump of version {version & 0xFFFF:#x}", offset=4)
    if count > _STREAMS_LIMIT:
        raise SourceError(stream.name, f"{count} streams", offset=8)
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
    return Minidump(stream, streams, _machine(stream, streams))


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
