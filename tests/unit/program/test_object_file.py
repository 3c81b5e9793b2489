"""Relocatable objects that are read without pyelftools: what they hold, and what is refused."""

import struct

import pytest

from fpstate.errors import ProgramError
from fpstate.program import Program
from fpstate.program.object_file import ObjectFile

NAMES = b"\0.text.entry\0.data\0_start\0lost\0"
TEXT, DATA = b"\x90" * 16 + b"\xc3", b"d" * 8


def section(kind, offset, size, *, name=0, flags=0, link=0, info=0, entry=0):
    return struct.pack("<IIQQQQIIQQ", name, kind, flags, 0, offset, size, link, info, 1, entry)


def symbol(name, section, value=0, *, bind=1):
    return struct.pack("<IBBHQQ", NAMES.index(name), bind << 4, 0, section, value, 0)


def object_file(*symbols, more=()):
    """An object with code, data, symbols and names."""
    table = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0) + b"".join(symbols)
    count = 5 + len(more)
    at = 64 + 64 * count
    places = [(at, len(TEXT)), (at + len(TEXT), len(DATA))]
    at = sum(places[1])
    sections = [
        bytes(64),
        section(1, *places[0], name=NAMES.index(b".text"), flags=6),
        section(1, *places[1], name=NAMES.index(b".data"), flags=3),
        section(2, at, len(table), link=4, entry=24),
        section(3, at + len(table), len(NAMES)),
        *more,
    ]
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, count, 4)
    return head + b"".join(sections) + TEXT + DATA + table + NAMES


def test_sections_become_segments_and_the_entry_is_start():
    program = Program.from_bytes(object_file(symbol(b"_start", 1, 4)), path="a.o")
    assert program.entry == 4
    assert [(each.data, each.writable, each.executable) for each in program.segments] == [
        (TEXT, False, True),
        (DATA, True, False),
    ]


def test_names_and_symbols_are_those_of_the_file():
    elf = ObjectFile(object_file(symbol(b"_start", 1), symbol(b"lost", 0, bind=2)))
    assert [elf.section_name(each) for each in elf.sections[:3]] == ["", ".text.entry", ".data"]
    assert [elf.symbol_name(each) for each in elf.symbols()] == ["", "_start", "lost"]
    assert [each.weak for each in elf.symbols()] == [False, False, True]
    with pytest.raises(IndexError):
        elf.symbol(3)


@pytest.mark.parametrize(
    ("symbols", "more", "message"),
    [
        ((symbol(b"lost", 0),), (), "undefined symbols: lost"),
        ((symbol(b"lost", 0),) * 9, (), "undefined symbols: lost, lost, lost, lost, lost and 4 more"),
        ((symbol(b"_start", 2),), (), "_start is not in executable code"),
        ((symbol(b"_start", 1, 17),), (), "_start is not in executable code"),
        ((), (section(4, 64, 24, info=1),), "relocations left|symbol"),
        ((), (section(1, 64, 8, flags=0x402),), "thread-local storage"),
        ((), (section(1, 1 << 40, 8, flags=2),), "lies outside the file"),
        ((), (section(1, 64, 400, flags=2), section(1, 64, 400, flags=2)), "they overlap"),
        ((), (section(8, 0, 1 << 40, flags=2),), "asks for"),
    ],
)
def test_what_cannot_run_is_refused(symbols, more, message):
    with pytest.raises(ProgramError, match=message):
        Program.from_bytes(object_file(*symbols, more=more), path="a.o")


def test_weak_symbols_and_sections_without_bytes_are_nothing_to_refuse():
    more = (section(8, 0, 4096, flags=3),)
    program = Program.from_bytes(object_file(symbol(b"lost", 0, bind=2), more=more), path="a.o")
    assert program.entry == 0
    assert program.segments[-1].memory_size == 4096
    assert program.segments[-1].data == b""
