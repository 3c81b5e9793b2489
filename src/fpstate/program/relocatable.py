"""A guest program in a relocatable object (ET_REL) whose sections need no relocation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.errors import ProgramError
from fpstate.program.dynamic import RELOCATION_HELP, relocation_name
from fpstate.program.load import Segment
from fpstate.program.object_file import SHT_NOBITS, SHT_REL, SHT_RELA, ObjectFile, Section

_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_TLS = 1, 2, 4, 0x400
_UNREAD_SECTIONS: Final = (".eh_frame", ".note")
"""Allocated by compilers, but nothing in a freestanding program reads them."""
_ENTRY = "_start"
_LINKER_TABLE = "_GLOBAL_OFFSET_TABLE_"
_ENTRY_SECTION = ".text.entry"
_NAMED = 5

_STATIC_PIE = "Link it with gcc -static-pie -nostdlib -ffreestanding -fno-stack-protector."


def load_relocatable(data: bytes, path: str, maximum: int) -> tuple[tuple[Segment, ...], int]:
    """Segments and entry offset, the allocated sections laid out one after another.

    Raises ProgramError for undefined symbols and relocations, when more than ``maximum``
    bytes of memory are asked for, and for sections that share their bytes in the file.
    """
    try:
        return _load(ObjectFile(data), path, maximum)
    except ProgramError:
        raise
    except Exception as error:  # what the format does not allow shows in many ways
        raise ProgramError(
            path,
            f"is a damaged object file: {error or type(error).__name__}",
            help="The file is damaged or cut short; build it again.",
        ) from error


def _load(elf: ObjectFile, path: str, maximum: int) -> tuple[tuple[Segment, ...], int]:
    kept = {index: section for index, section in enumerate(elf.sections) if _is_kept(elf, section)}
    if not any(section.flags & _SHF_EXECINSTR for section in kept.values()):
        raise ProgramError(path, "has no executable section", help=_STATIC_PIE)
    _check_undefined(path, elf)
    _check_relocations(path, elf, kept)
    offsets = _lay_out(path, elf, kept, maximum)
    segments = tuple(
        Segment(
            offset=offsets[index],
            data=elf.content(section),
            memory_size=section.size,
            writable=bool(section.flags & _SHF_WRITE),
            executable=bool(section.flags & _SHF_EXECINSTR),
        )
        for index, section in kept.items()
    )
    return segments, _entry(path, elf, kept, offsets)


def _is_kept(elf: ObjectFile, section: Section) -> bool:
    return bool(
        section.flags & _SHF_ALLOC
        and section.size
        and not elf.section_name(section).startswith(_UNREAD_SECTIONS)
    )


def _check_undefined(path: str, elf: ObjectFile) -> None:
    undefined: list[str] = []
    more = 0
    for symbol in elf.symbols():
        if symbol.section or symbol.weak:
            continue
        name = elf.symbol_name(symbol) if symbol.name else ""
        if name in ("", _LINKER_TABLE):
            continue
        if len(undefined) < _NAMED:
            undefined.append(name)
        else:
            more += 1
    if undefined:
        rest = f" and {more} more" if more else ""
        raise ProgramError(
            path,
            f"has undefined symbols: {', '.join(undefined)}{rest}",
            help="Define them in the program; there is no C library to take them from.",
        )


def _check_relocations(path: str, elf: ObjectFile, kept: dict[int, Section]) -> None:
    for section in elf.sections:
        if section.type not in (SHT_RELA, SHT_REL) or not section.size:
            continue
        target = kept.get(section.info)
        if target is None:
            continue
        where, kind, index = elf.first_relocation(section)
        name = elf.symbol_name(elf.symbol(index))
        raise ProgramError(
            path,
            f"has relocations left, the first {relocation_name(kind)} "
            f"at {where:#x} in {elf.section_name(target)}, symbol {name or '(none)'}",
            help=f"{_STATIC_PIE} {RELOCATION_HELP}",
        )


def _lay_out(path: str, elf: ObjectFile, kept: dict[int, Section], maximum: int) -> dict[int, int]:
    offsets = {}
    end, left = 0, len(elf.data)
    for index, section in _entry_first(elf, kept):
        name = elf.section_name(section)
        if section.flags & _SHF_TLS:
            raise ProgramError(
                path,
                f"uses thread-local storage ({name}), which a vCPU does not have",
                help="Use ordinary variables, and compile with -fno-stack-protector.",
            )
        if section.type != SHT_NOBITS:
            left -= section.size
            if section.offset + section.size > len(elf.data):
                raise ValueError(f"section {name} lies outside the file")
            if left < 0:
                raise ValueError(
                    f"its sections have more bytes than the {len(elf.data)} of the file: they overlap"
                )
        alignment = max(section.alignment, 1)
        if alignment & (alignment - 1):
            raise ValueError(f"section {name} has alignment {alignment}")
        offsets[index] = (end + alignment - 1) & -alignment
        end = offsets[index] + section.size
        if end > maximum:
            raise ProgramError(
                path,
                f"asks for {end} bytes of memory; programs are limited to {maximum}",
                help="Make its arrays smaller.",
            )
    return offsets


def _entry_first(elf: ObjectFile, kept: dict[int, Section]) -> Iterator[tuple[int, Section]]:
    return iter(sorted(kept.items(), key=lambda item: elf.section_name(item[1]) != _ENTRY_SECTION))


def _entry(path: str, elf: ObjectFile, kept: dict[int, Section], offsets: dict[int, int]) -> int:
    for symbol in elf.symbols():
        index = symbol.section
        if index in kept and symbol.name and elf.symbol_name(symbol) == _ENTRY:
            if not kept[index].flags & _SHF_EXECINSTR or symbol.value >= kept[index].size:
                raise ProgramError(path, f"{_ENTRY} is not in executable code", help=_STATIC_PIE)
            return offsets[index] + symbol.value
    return min(offsets[index] for index, section in kept.items() if section.flags & _SHF_EXECINSTR)
