"""How many segments a guest program may have: each vCPU is given a copy of every one."""

from __future__ import annotations

import struct

import pytest

from fpstate.errors import ProgramError
from fpstate.program import Program
from fpstate.program.elf import MOST_SEGMENTS

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_PIE, _X86_64, _LOAD, _READ_EXECUTE = 3, 62, 1, 5


def program(count: int) -> bytes:
    """A static PIE of ``count`` segments of one byte each, HLT, on pages of their own."""
    table = _HEADER.size + _SEGMENT.size * count
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _HEADER.pack(ident, _PIE, _X86_64, 1, 0, 64, 0, 0, 64, _SEGMENT.size, count, 0, 0, 0)
    loads = (
        _SEGMENT.pack(_LOAD, _READ_EXECUTE, table + number, number << 12, 0, 1, 1, 1)
        for number in range(count)
    )
    return header + b"".join(loads) + b"\xf4" * count


def test_as_many_as_any_linker_makes_are_taken(tmp_path):
    path = tmp_path / "guest"
    path.write_bytes(program(MOST_SEGMENTS))
    assert len(Program.from_file(path).segments) == MOST_SEGMENTS


def test_more_are_refused(tmp_path):
    path = tmp_path / "guest"
    path.write_bytes(program(MOST_SEGMENTS + 1))
    with pytest.raises(
        ProgramError, match=f"has {MOST_SEGMENTS + 1} segments to load; programs have at most"
    ) as caught:
        Program.from_file(path)
    assert "default script" in caught.value.help
