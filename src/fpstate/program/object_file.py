"""Sections and symbols of a relocatable ELF object, read as far as they are asked for.

Read here and not by pyelftools, which makes an object of every symbol and reads every name to its end: 16 MiB of
symbols then take a GiB, and sections that share one endless name take hours. Numbers are from the System V ABI.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 2, 4, 8, 9
STB_WEAK: Final = 2
_NAME_MAXIMUM: Final = 256
_RESERVED_INDEX: Final = 0xFF00
_TABLE: Final = struct.Struct("<Q")
_COUNTS: Final = struct.Struct("<HHH")
_TABLE_AT, _COUNTS_AT = 0x28, 0x3A
"""Where the ELF header has e_shoff, and e_shentsize, e_shnum and e_shstrndx."""
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQ")


class Section(NamedTuple):
    """One entry of the section header table; ``name`` is an offset in the table of names."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Symbol(NamedTuple):
    """One entry of the symbol table; ``name`` is an offset in its string table, ``section`` 0 where it is undefined."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int

    @property
    def weak(self) -> bool:
        """Whether the program does without it where nobody defines it."""
        return self.info >> 4 == STB_WEAK


class ObjectFile:
    """An object in memory. Raises ValueError, IndexError or struct.error for what is not within it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        (table,) = _TABLE.unpack_from(data, _TABLE_AT)
        _, count, names = _COUNTS.unpack_from(data, _COUNTS_AT)
        self.sections = [
            Section._make(_SECTION.unpack_from(data, table + index * _SECTION.size)) for index in range(count)
        ]
        self._names = self.sections[names] if count else None
        self._symbols = next((each for each in self.sections if each.type == SHT_SYMTAB), None)
        table_of_symbols = self._symbols
        if table_of_symbols is not None and (
            table_of_symbols.entry_size != _SYMBOL.size
            or table_of_symbols.offset + table_of_symbols.size > len(data)
        ):
            raise ValueError("its symbol table lies outside the file")

    def section_name(self, section: Section) -> str:
        """Return a section's name, its first 256 bytes where it is longer."""
        return self._text(self._names, section.name)

    def symbol_name(self, symbol: Symbol) -> str:
        """Return a symbol's name likewise; for one without a name, that of its section."""
        table = self._symbols
        name = "" if table is None else self._text(self.sections[table.link], symbol.name)
        if not name and symbol.section < _RESERVED_INDEX:
            return self.section_name(self.sections[symbol.section])
        return name

    def symbols(self) -> Iterator[Symbol]:
        """Yield every symbol."""
        table = self._symbols
        if table is not None:
            end = table.offset + table.size // _SYMBOL.size * _SYMBOL.size
            yield from map(Symbol._make, _SYMBOL.iter_unpack(memoryview(self.data)[table.offset : end]))

    def symbol(self, index: int) -> Symbol:
        """Return one symbol."""
        table = self._symbols
        if table is None or index >= table.size // _SYMBOL.size:
            raise IndexError(f"symbol {index} is not in its table")
        return Symbol._make(_SYMBOL.unpack_from(self.data, table.offset + index * _SYMBOL.size))

    def first_relocation(self, section: Section) -> tuple[int, int, int]:
        """Return offset, type and symbol of the first relocation of a section of them."""
        where, information = _RELOCATION.unpack_from(self.data, section.offset)
        return where, information & 0xFFFFFFFF, information >> 32

    def content(self, section: Section) -> bytes:
        """Return the bytes of a section; none where the file has none of it."""
        return (
            b"" if section.type == SHT_NOBITS else self.data[section.offset : section.offset + section.size]
        )

    def _text(self, table: Section | None, offset: int) -> str:
        if table is None:
            return ""
        start = table.offset + offset
        return self.data[start : start + _NAME_MAXIMUM].split(b"\0", 1)[0].decode("utf-8", "replace")
