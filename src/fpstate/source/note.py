"""The notes of an ELF core, taken for hostile: every size is held against the segment and the file.

The program headers and notes are read here, not by pyelftools, for three reasons: compressed cores have to be
read forwards and no further than needed, a damaged note must be reported at its byte, and pyelftools takes
longer to import than all the rest takes to run. Names and numbers are from the System V ABI (gABI), chapters
4 and 5; Linux ``fs/binfmt_elf.c`` writes e_phnum as PN_XNUM where there are 65535 segments or more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from fpstate.errors import SourceError
from fpstate.source.budget import DESCRIPTION, DESCRIPTIONS, NOTE_SEGMENTS, NOTES, SEGMENTS, SHARED, Budget
from fpstate.source.stream import Stream, read_exactly
from fpstate.source.thread import Machine

MAGIC: Final = b"\x7fELF"
_CLASSES: Final = {1: 32, 2: 64}
_LITTLE_ENDIAN, _ET_CORE, _PT_NOTE, _PN_XNUM = 1, 4, 4, 0xFFFF
_EM_386, _EM_X86_64 = 3, 62
_HEADERS: Final = {32: struct.Struct("<HHIIIIIHHHHHH"), 64: struct.Struct("<HHIQQQIHHHHHH")}
_IDENT_SIZE: Final = 16
_NOTE: Final = struct.Struct("<III")
_NAME_LIMIT: Final = 64


class Note(NamedTuple):
    """One note: its owner's name, its type and where its ``size`` bytes of description lie in the file."""

    name: str
    type: int
    offset: int
    size: int


class ElfCore(NamedTuple):
    """What an ELF header says of a core: the machine, and its program headers; ``budget`` is what reading it costs."""

    stream: Stream
    bits: Literal[32, 64]
    machine: Machine
    segments_offset: int
    segment_count: int
    budget: Budget

    def notes(self) -> Iterator[Note]:
        """Yield the notes by offset, so that a compressed core is inflated forwards.

        Raises SourceError at the first byte that makes no sense, BudgetExceeded for segments that overlap by more
        than real ones do, and for too many notes.
        """
        behind = 0
        for offset, size in sorted(self._note_segments()):
            named_before = max(0, min(behind, offset + size) - offset)
            self.budget.charge(SHARED, named_before, offset=offset, lead="its note segments overlap by ")
            behind = max(behind, offset + size)
            for note in _segment_notes(self.stream, offset, size):
                self.budget.charge(NOTES, offset=note.offset)
                yield note

    def check_size(self, note: Note) -> None:
        """Raise BudgetExceeded for a note that is larger than any whose description is looked at."""
        self.budget.hold(
            DESCRIPTION,
            note.size,
            offset=note.offset,
            lead=f"a note of {note.name!r}, type {note.type:#x}, claims {note.size} bytes, ",
        )

    def description(self, note: Note) -> bytes:
        """Return a note's bytes; raises SourceError where the file lacks some, and BudgetExceeded."""
        self.check_size(note)
        self.budget.charge(DESCRIPTIONS, note.size, offset=note.offset)
        return read_exactly(self.stream, note.offset, note.size, "the description of a note")

    def _note_segments(self) -> Iterator[tuple[int, int]]:
        entry = 32 if self.bits == 32 else 56
        block = 512 * entry
        end = self.segments_offset + self.segment_count * entry
        for start in range(self.segments_offset, end, block):
            data = read_exactly(self.stream, start, min(block, end - start), "the program headers")
            for at in range(0, len(data), entry):
                if data[at] != _PT_NOTE or data[at + 1 : at + 4] != b"\0\0\0":
                    continue
                if self.bits == 32:
                    offset, _, _, size = struct.unpack_from("<IIII", data, at + 4)
                else:
                    offset, _, _, size = struct.unpack_from("<QQQQ", data, at + 8)
                if size:
                    self.budget.charge(NOTE_SEGMENTS, offset=start + at)
                    yield offset, size


def check_head(stream: Stream) -> None:
    """Raise SourceError where the first 64 bytes say that this is no x86 core, with the byte that says so."""
    _header(stream)


def read_core(stream: Stream) -> ElfCore:
    """Read a core's ELF header; raises SourceError for what is no x86 core, with the byte that says so."""
    bits, fields = _header(stream)
    _, machine, _, _, segments, sections, _, _, entry, count, _, _, _ = fields
    if count == _PN_XNUM:
        # sh_info of section 0 has the true count (gABI; Linux fill_elf_header_extnum).
        at = sections + (28 if bits == 32 else 44)
        count = int.from_bytes(read_exactly(stream, at, 4, "section header 0"), "little")
    if count and entry != (32 if bits == 32 else 56):
        raise SourceError(stream.name, f"program headers of {entry} bytes", offset=42 if bits == 32 else 54)
    budget = Budget.of(stream)
    budget.hold(SEGMENTS, count, offset=44 if bits == 32 else 56)
    name: Machine = "i386" if machine == _EM_386 else "x86-64" if bits == 64 else "x32"
    return ElfCore(stream, bits, name, segments, count, budget)


def _header(stream: Stream) -> tuple[Literal[32, 64], tuple[int, ...]]:
    ident = read_exactly(stream, 0, _IDENT_SIZE, "the ELF identification")
    if not ident.startswith(MAGIC):
        raise SourceError(stream.name, "is no ELF file", offset=0)
    if ident[4] not in _CLASSES or ident[5] != _LITTLE_ENDIAN:
        raise SourceError(
            stream.name,
            f"ELF class {ident[4]}, data encoding {ident[5]}: no x86 file",
            offset=4 if ident[4] not in _CLASSES else 5,
        )
    bits: Literal[32, 64] = 32 if ident[4] == 1 else 64
    layout = _HEADERS[bits]
    fields = layout.unpack(read_exactly(stream, _IDENT_SIZE, layout.size, "the ELF header"))
    kind, machine = fields[:2]
    if kind != _ET_CORE:
        raise SourceError(
            stream.name, f"an ELF file of type {kind}, not a core (4)", offset=16, help="name a core file"
        )
    if machine not in (_EM_386, _EM_X86_64) or (machine == _EM_386 and bits == 64):
        raise SourceError(stream.name, f"machine {machine} in ELF class {bits} is not x86", offset=18)
    return bits, fields


def _segment_notes(stream: Stream, offset: int, size: int) -> Iterator[Note]:
    if stream.size is not None and offset + size > stream.size:
        raise SourceError(
            stream.name,
            f"a note segment of {size} bytes ends at {offset + size}, the file at {stream.size}",
            offset=offset,
            help="the file may have been cut short, by a limit on the size of cores or while it was copied",
        )
    cursor, end = offset, offset + size
    while cursor + _NOTE.size <= end:
        name_size, description_size, kind = _NOTE.unpack(
            read_exactly(stream, cursor, _NOTE.size, "a note's header")
        )
        start = cursor + _NOTE.size + (name_size + 3 & ~3)
        if start + description_size > end:
            raise SourceError(
                stream.name,
                f"a note's name and description claim {name_size} and {description_size} bytes,"
                f" {end - cursor - _NOTE.size} are left in its segment",
                offset=cursor,
            )
        name = read_exactly(stream, cursor + _NOTE.size, min(name_size, _NAME_LIMIT), "a note's name")
        yield Note(name.split(b"\0", 1)[0].decode("latin-1"), kind, start, description_size)
        cursor = start + (description_size + 3 & ~3)
