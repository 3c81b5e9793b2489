"""Segments and entry of a guest program in an ELF file that needs no relocation.

Everything in a file is taken for hostile: tables must lie within it, and sizes are checked before
memory is given. Names and numbers are from the System V ABI and its x86-64 supplement.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from elftools.elf.descriptions import describe_e_machine
from elftools.elf.enums import ENUM_E_MACHINE

from fpstate.errors import ProgramError
from fpstate.program.dynamic import PT_LOAD, ElfFile, ProgramHeader, check_dynamic
from fpstate.program.load import Segment
from fpstate.program.relocatable import load_relocatable

MEMORY_MAXIMUM: Final = 256 << 20
MOST_SEGMENTS: Final = 256
"""What linkers make has fewer than 20; every vCPU is given a copy of each."""
"""Programs that ask for more memory are refused before any is given."""

_PAGE = 4096
_HEADER = struct.Struct("<HHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_IDENT_SIZE = 16
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_ET_REL, _ET_EXEC, _ET_DYN, _ET_CORE = 1, 2, 3, 4
_EM_X86_64 = 62
_PF_X, _PF_W = 1, 2
_EXTENDED_COUNT = 0xFFFF

_STATIC_PIE = "Link it with gcc -static-pie -nostdlib -ffreestanding -fno-stack-protector."
_DAMAGED = "The file is damaged or cut short; build it again."


@dataclass(frozen=True, slots=True)
class _Header:
    type: int
    entry: int
    program_headers: int
    program_header_count: int


def load_elf(data: bytes, path: str) -> tuple[tuple[Segment, ...], int]:
    """Segments and entry offset of the ELF file ``data``; raises ProgramError when it cannot run as it is."""
    header = _header(data, path)
    if header.type == _ET_REL:
        return load_relocatable(data, path, MEMORY_MAXIMUM)
    elf = ElfFile(data, path, _program_headers(data, path, header))
    check_dynamic(elf)
    base, segments = _load_segments(elf)
    entry = header.entry - base
    _check_entry(path, segments, entry)
    return segments, entry


def _header(data: bytes, path: str) -> _Header:
    if len(data) < _IDENT_SIZE + _HEADER.size:
        raise ProgramError(path, f"ends after {len(data)} bytes, within the ELF header", help=_DAMAGED)
    if data[4] != _CLASS_64:
        raise ProgramError(
            path, "is not a 64-bit ELF file", help="Compile it for x86-64: gcc -m64, without -m32 and -mx32."
        )
    if data[5] != _LITTLE_ENDIAN:
        raise ProgramError(path, "is a big-endian ELF file", help="Compile it for x86-64.")
    fields = _HEADER.unpack_from(data, _IDENT_SIZE)
    kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = fields
    if machine != _EM_X86_64:
        raise ProgramError(path, f"is for {_machine(machine)}, not for x86-64", help="Compile it for x86-64.")
    _check_type(path, kind)
    for what, offset, size, count in (
        ("program", phoff, phentsize, phnum),
        ("section", shoff, shentsize, shnum),
    ):
        if offset == 0 and count == 0:
            continue
        due = _PROGRAM_HEADER.size if what == "program" else 64
        if count == _EXTENDED_COUNT or (count and size != due) or offset + count * due > len(data):
            raise ProgramError(
                path, f"has {count} {what} headers at {offset:#x}, beyond its end", help=_DAMAGED
            )
    return _Header(kind, entry, phoff, phnum)


def _machine(number: int) -> str:
    names = {value: name for name, value in ENUM_E_MACHINE.items() if isinstance(value, int)}
    return str(describe_e_machine(names[number])) if number in names else f"machine {number}"


def _check_type(path: str, kind: int) -> None:
    if kind in (_ET_REL, _ET_DYN):
        return
    if kind == _ET_EXEC:
        raise ProgramError(
            path, "is linked to a fixed address; a vCPU loads programs anywhere", help=_STATIC_PIE
        )
    what = "a core dump" if kind == _ET_CORE else f"an ELF file of unknown type {kind}"
    raise ProgramError(path, f"is {what}, not a program", help=_STATIC_PIE)


def _program_headers(data: bytes, path: str, header: _Header) -> tuple[ProgramHeader, ...]:
    found = []
    for index in range(header.program_header_count):
        at = header.program_headers + index * _PROGRAM_HEADER.size
        kind, flags, offset, address, _, file_size, memory_size, _ = _PROGRAM_HEADER.unpack_from(data, at)
        if offset + file_size > len(data):
            raise ProgramError(
                path,
                f"program header {index} wants bytes {offset:#x} to {offset + file_size:#x}; "
                f"the file has {len(data):#x}",
                help=_DAMAGED,
            )
        found.append(ProgramHeader(kind, flags, offset, address, file_size, memory_size))
    return tuple(found)


def _load_segments(elf: ElfFile) -> tuple[int, tuple[Segment, ...]]:
    loads = sorted((h for h in elf.headers if h.kind == PT_LOAD and h.memory_size), key=lambda h: h.address)
    if not loads:
        raise ProgramError(elf.path, "has nothing to load", help=_STATIC_PIE)
    if len(loads) > MOST_SEGMENTS:
        raise ProgramError(
            elf.path,
            f"has {len(loads)} segments to load; programs have at most {MOST_SEGMENTS} here",
            help="Link it with the default script: each vCPU gets a copy of every segment.",
        )
    base = loads[0].address - loads[0].address % _PAGE
    end = base
    segments = []
    named = sum(header.file_size for header in loads)
    if named > len(elf.data):
        raise ProgramError(
            elf.path,
            f"its segments name {named} bytes of a file of {len(elf.data)}: they overlap in the file",
            help=_DAMAGED,
        )
    for header in loads:
        if header.file_size > header.memory_size or header.address < end:
            raise ProgramError(
                elf.path,
                f"the segment at {header.address:#x} overlaps another, or its file part is too large",
                help=_DAMAGED,
            )
        end = header.address + header.memory_size
        if end - base > MEMORY_MAXIMUM:
            raise ProgramError(
                elf.path,
                f"asks for {end - base} bytes of memory; programs are limited to {MEMORY_MAXIMUM}",
                help="Make its arrays smaller.",
            )
        segments.append(
            Segment(
                offset=header.address - base,
                data=elf.data[header.offset : header.offset + header.file_size],
                memory_size=header.memory_size,
                writable=bool(header.flags & _PF_W),
                executable=bool(header.flags & _PF_X),
            )
        )
    return base, tuple(segments)


def _check_entry(path: str, segments: tuple[Segment, ...], entry: int) -> None:
    if any(s.executable and s.offset <= entry < s.offset + len(s.data) for s in segments):
        return
    raise ProgramError(
        path,
        f"its entry point, offset {entry:#x}, is not in executable code",
        help="Define the entry function with FPSTATE_ENTRY, and link a program, not a library.",
    )
