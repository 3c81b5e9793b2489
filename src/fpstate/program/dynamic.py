"""What a linked ELF file still asks of a dynamic linker; a guest program must ask nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NoReturn

from elftools.elf.enums import ENUM_RELOC_TYPE_x64

from fpstate.errors import ProgramError

PT_LOAD: Final = 1
_PT_DYNAMIC, _PT_INTERP, _PT_TLS = 2, 3, 7
_DT_NULL, _DT_NEEDED, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB = 0, 1, 2, 5, 6
_DT_RELA, _DT_RELASZ, _DT_REL, _DT_RELSZ, _DT_JMPREL, _DT_RELRSZ, _DT_RELR = 7, 8, 17, 18, 23, 35, 36
_LOOKED_AT: Final = frozenset(
    (
        *(_DT_NEEDED, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_REL, _DT_RELSZ),
        *(_DT_JMPREL, _DT_RELRSZ, _DT_RELR),
    )
)
_NAMED = 5
"""Libraries that an error names."""
_NAME_MAXIMUM = 256
_SYMBOL_SIZE = 24

_STATIC_PIE = "Link it with gcc -static-pie -nostdlib -ffreestanding -fno-stack-protector, and no libraries."
RELOCATION_HELP: Final = (
    "Nothing relocates a guest program: keep no addresses in its data (tables of pointers or functions), "
    "compile with -fPIE and link with -static-pie."
)

_RELOCATION_NAMES = {value: name for name, value in ENUM_RELOC_TYPE_x64.items() if isinstance(value, int)}


def relocation_name(number: int) -> str:
    """The ABI's name of an x86-64 relocation type."""
    return _RELOCATION_NAMES.get(number, f"relocation type {number}")


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One entry of the program header table; sizes in bytes."""

    kind: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfFile:
    """The bytes of a linked ELF file and its program headers, all of which lie within the bytes."""

    data: bytes
    path: str
    headers: tuple[ProgramHeader, ...]

    def at(self, address: int, size: int) -> bytes:
        """The bytes at a virtual address, fewer or none where the file has no more."""
        for header in self.headers:
            if header.kind == PT_LOAD and header.address <= address < header.address + header.file_size:
                offset = header.offset + address - header.address
                return self.data[offset : min(offset + size, header.offset + header.file_size)]
        return b""

    def text(self, address: int) -> str:
        """The zero-terminated name at a virtual address."""
        return self.at(address, _NAME_MAXIMUM).split(b"\0")[0].decode("utf-8", "replace")

    def refuse(self, message: str, help: str) -> NoReturn:
        """Raise ProgramError for this file."""
        raise ProgramError(self.path, message, help=help)


def check_dynamic(elf: ElfFile) -> None:
    """Raise ProgramError when the file needs an interpreter, a library, a symbol, TLS or a relocation."""
    entries = _entries(elf)
    names = entries.get(_DT_STRTAB, [0])[0]
    libraries = [elf.text(names + offset) for offset in entries.get(_DT_NEEDED, [])]
    for header in elf.headers:
        if header.kind == _PT_INTERP:
            name = elf.data[header.offset : header.offset + min(header.file_size, _NAME_MAXIMUM)]
            needs = f" and needs {', '.join(libraries)}" if libraries else ""
            interpreter = name.split(b"\0")[0].decode("utf-8", "replace")
            elf.refuse(
                f"is a dynamic executable: it asks for the interpreter {interpreter}{needs}", _STATIC_PIE
            )
        if header.kind == _PT_TLS and header.memory_size:
            elf.refuse(
                "uses thread-local storage, which a vCPU does not have",
                "Use ordinary variables, and compile with -fno-stack-protector.",
            )
    if libraries:
        elf.refuse(f"needs the shared library {libraries[0]}", _STATIC_PIE)
    _check_relocations(elf, {tag: values[0] for tag, values in entries.items()})


def _entries(elf: ElfFile) -> dict[int, list[int]]:
    """Return the first few values of each tag that is looked at; tables that share their bytes are refused."""
    entries: dict[int, list[int]] = {}
    left = len(elf.data)
    for header in elf.headers:
        if header.kind != _PT_DYNAMIC:
            continue
        left -= header.file_size
        if left < 0:
            elf.refuse("has dynamic tables with more bytes than the file: they overlap", _STATIC_PIE)
        table = memoryview(elf.data)[header.offset : header.offset + header.file_size // 16 * 16]
        for tag, value in struct.iter_unpack("<QQ", table):
            if tag == _DT_NULL:
                break
            if tag in _LOOKED_AT and len(values := entries.setdefault(tag, [])) < _NAMED:
                values.append(value)
    return entries


def _check_relocations(elf: ElfFile, entries: dict[int, int]) -> None:
    for table, size, entry_size in (
        (_DT_RELA, _DT_RELASZ, 24),
        (_DT_JMPREL, _DT_PLTRELSZ, 24),
        (_DT_REL, _DT_RELSZ, 16),
    ):
        if entries.get(size, 0):
            raw = elf.at(entries.get(table, 0), entry_size)
            if len(raw) < 16:
                elf.refuse(
                    f"has a table of relocations at {entries.get(table, 0):#x}, outside the file",
                    RELOCATION_HELP,
                )
            _refuse_relocation(elf, raw, entries)
    if entries.get(_DT_RELRSZ, 0):
        raw = elf.at(entries.get(_DT_RELR, 0), 8)
        where = int.from_bytes(raw, "little")
        elf.refuse(
            f"has relocations left, the first a packed R_X86_64_RELATIVE at {where:#x}", RELOCATION_HELP
        )


def _refuse_relocation(elf: ElfFile, raw: bytes, entries: dict[int, int]) -> NoReturn:
    where, information = struct.unpack_from("<QQ", raw)
    index = information >> 32
    target = f"addend {int.from_bytes(raw[16:24], 'little'):#x}"
    undefined = False
    if index and _DT_SYMTAB in entries:
        symbol = elf.at(entries[_DT_SYMTAB] + index * _SYMBOL_SIZE, _SYMBOL_SIZE)
        if len(symbol) == _SYMBOL_SIZE:
            name, _, _, section = struct.unpack_from("<IBBH", symbol)
            undefined = section == 0
            target = f"symbol {elf.text(entries.get(_DT_STRTAB, 0) + name)}"
    kind = relocation_name(information & 0xFFFFFFFF)
    message = f"{kind} at {where:#x}{_section_of(elf, where)}, {target}"
    if undefined:
        elf.refuse(f"has an undefined symbol: {message}", "Define it in the program, or do without it.")
    elf.refuse(f"has relocations left, the first {message}", RELOCATION_HELP)


def _section_of(elf: ElfFile, address: int) -> str:
    """`` in NAME``, where the section headers say; nothing where they were stripped."""
    (table,) = struct.unpack_from("<Q", elf.data, 0x28)
    count, names = struct.unpack_from("<HH", elf.data, 0x3C)
    headers = [struct.unpack_from("<IIQQQQ", elf.data, table + 64 * index) for index in range(count)]
    for name, _, flags, start, _, size in headers:
        if flags & 2 and start <= address < start + size and names < count:
            offset = headers[names][4] + name
            text = elf.data[offset : offset + _NAME_MAXIMUM].split(b"\0")[0]
            return f" in {text.decode('utf-8', 'replace')}"
    return ""
