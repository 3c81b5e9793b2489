"""A guest program in a relocatable object (ET_REL) whose sections need no relocation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, Final

from elftools.elf.elffile import ELFFile

from fpstate.errors import ProgramError
from fpstate.program.dynamic import RELOCATION_HELP, relocation_name
from fpstate.program.load import Segment

_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_TLS = 1, 2, 4, 0x400
_UNREAD_SECTIONS: Final = (".eh_frame", ".note")
"""Allocated by compilers, but nothing in a freestanding program reads them."""
_ENTRY = "_start"
_LINKER_TABLE = "_GLOBAL_OFFSET_TABLE_"
_ENTRY_SECTION = ".text.entry"
_NAMED = 5
_SYMBOL_SIZE = 24

_STATIC_PIE = "Link it with gcc -static-pie -nostdlib -ffreestanding -fno-stack-protector."

Section = Any
"""pyelftools is not typed."""


def load_relocatable(data: bytes, path: str, maximum: int) -> tuple[tuple[Segment, ...], int]:
    """Segments and entry offset, the allocated sections laid out one after another.

    Raises ProgramError for undefined symbols and relocations, and when more than ``maximum``
    bytes of memory are asked for.
    """
    try:
        return _load(data, path, maximum)
    except ProgramError:
        raise
    except Exception as error:  # pyelftools lets many kinds through on damaged files
        raise ProgramError(
            path,
            f"is a damaged object file: {error or type(error).__name__}",
            help="The file is damaged or cut short; build it again.",
        ) from error


def _load(data: bytes, path: str, maximum: int) -> tuple[tuple[Segment, ...], int]:
    elf = ELFFile(io.BytesIO(data))
    sections: list[Section] = list(elf.iter_sections())
    kept = {index: section for index, section in enumerate(sections) if _is_kept(section)}
    if not any(section["sh_flags"] & _SHF_EXECINSTR for section in kept.values()):
        raise ProgramError(path, "has no executable section", help=_STATIC_PIE)
    symbols = _symbols(sections, len(data))
    _check_undefined(path, symbols)
    _check_relocations(path, sections, kept, symbols)
    offsets = _lay_out(path, kept, maximum, len(data))
    segments = tuple(
        Segment(
            offset=offsets[index],
            data=b"" if section["sh_type"] == "SHT_NOBITS" else section.data(),
            memory_size=section["sh_size"],
            writable=bool(section["sh_flags"] & _SHF_WRITE),
            executable=bool(section["sh_flags"] & _SHF_EXECINSTR),
        )
        for index, section in kept.items()
    )
    return segments, _entry(path, kept, offsets, symbols)


def _is_kept(section: Section) -> bool:
    return bool(
        section["sh_flags"] & _SHF_ALLOC
        and section["sh_size"]
        and not section.name.startswith(_UNREAD_SECTIONS)
    )


def _symbols(sections: list[Section], file_size: int) -> list[Section]:
    for section in sections:
        if section["sh_type"] == "SHT_SYMTAB":
            if section["sh_entsize"] != _SYMBOL_SIZE or section["sh_offset"] + section["sh_size"] > file_size:
                raise ValueError("its symbol table lies outside the file")
            return list(section.iter_symbols())
    return []


def _check_undefined(path: str, symbols: list[Section]) -> None:
    undefined = [
        symbol.name
        for symbol in symbols
        if symbol["st_shndx"] == "SHN_UNDEF"
        and symbol["st_info"]["bind"] != "STB_WEAK"
        and symbol.name not in ("", _LINKER_TABLE)
    ]
    if undefined:
        more = f" and {len(undefined) - _NAMED} more" if len(undefined) > _NAMED else ""
        raise ProgramError(
            path,
            f"has undefined symbols: {', '.join(undefined[:_NAMED])}{more}",
            help="Define them in the program; there is no C library to take them from.",
        )


def _check_relocations(
    path: str, sections: list[Section], kept: dict[int, Section], symbols: list[Section]
) -> None:
    for section in sections:
        if section["sh_type"] not in ("SHT_RELA", "SHT_REL") or not section["sh_size"]:
            continue
        target = kept.get(section["sh_info"])
        if target is None:
            continue
        relocation = section.get_relocation(0)
        symbol = symbols[relocation["r_info_sym"]]
        name = symbol.name
        if not name and isinstance(symbol["st_shndx"], int):
            name = sections[symbol["st_shndx"]].name
        raise ProgramError(
            path,
            f"has relocations left, the first {relocation_name(relocation['r_info_type'])} "
            f"at {relocation['r_offset']:#x} in {target.name}, symbol {name or '(none)'}",
            help=f"{_STATIC_PIE} {RELOCATION_HELP}",
        )


def _lay_out(path: str, kept: dict[int, Section], maximum: int, file_size: int) -> dict[int, int]:
    offsets = {}
    end = 0
    for index, section in _entry_first(kept):
        if section["sh_flags"] & _SHF_TLS:
            raise ProgramError(
                path,
                f"uses thread-local storage ({section.name}), which a vCPU does not have",
                help="Use ordinary variables, and compile with -fno-stack-protector.",
            )
        if section["sh_type"] != "SHT_NOBITS" and section["sh_offset"] + section["sh_size"] > file_size:
            raise ValueError(f"section {section.name} lies outside the file")
        alignment = max(section["sh_addralign"], 1)
        if alignment & (alignment - 1):
            raise ValueError(f"section {section.name} has alignment {alignment}")
        offsets[index] = (end + alignment - 1) & -alignment
        end = offsets[index] + section["sh_size"]
        if end > maximum:
            raise ProgramError(
                path,
                f"asks for {end} bytes of memory; programs are limited to {maximum}",
                help="Make its arrays smaller.",
            )
    return offsets


def _entry_first(kept: dict[int, Section]) -> Iterator[tuple[int, Section]]:
    return iter(sorted(kept.items(), key=lambda item: item[1].name != _ENTRY_SECTION))


def _entry(path: str, kept: dict[int, Section], offsets: dict[int, int], symbols: list[Section]) -> int:
    for symbol in symbols:
        section = symbol["st_shndx"]
        if symbol.name == _ENTRY and section in kept:
            if (
                not kept[section]["sh_flags"] & _SHF_EXECINSTR
                or symbol["st_value"] >= kept[section]["sh_size"]
            ):
                raise ProgramError(path, f"{_ENTRY} is not in executable code", help=_STATIC_PIE)
            return offsets[section] + int(symbol["st_value"])
    return min(offsets[index] for index, section in kept.items() if section["sh_flags"] & _SHF_EXECINSTR)
