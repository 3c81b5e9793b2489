"""The guest block in Python is the guest block of the C header."""

from __future__ import annotations

import re

import pytest

from fpstate.errors import ProgramError
from fpstate.program import Block, block, include_dir

FIELDS = {"MAGIC", "SEED", "FEATURES", "ARGUMENT", "INPUT_SIZE", "RESULT_SIZE", "STATUS", "RESERVED"}
AREAS = {"INPUT", "RESULT", "BLOCK_SIZE", "INPUT_MAXIMUM", "RESULT_MAXIMUM", "STACK_MINIMUM"}
COMPONENTS = {"X87", "SSE", "AVX", "OPMASK", "ZMM_HI256", "HI16_ZMM", "PKRU", "TILECFG", "TILEDATA"}
LEAVING = {"FINISHED", "YIELD", "FAILED", "PORT", "EXIT_SLOT"}
NAMES = FIELDS | AREAS | COMPONENTS | LEAVING | {"MAGIC_VALUE"}


def test_every_number_of_the_header_is_mirrored(built):
    header = (include_dir() / "fpstate_guest.h").read_text()
    defined = {
        name: int(value, 0)
        for name, value in re.findall(r"#define FPSTATE_(\w+) (0x[0-9A-F]+|\d+)\b", header)
    }
    assert defined.keys() == NAMES
    assert {name: getattr(block, name) for name in defined} == defined


def test_a_block_reads_back_as_it_was_written():
    written = Block(seed=-1, argument=3, features=7, input=b"abc", result=b"xyz", status=256)
    read = Block.from_bytes(written.to_bytes())
    assert read.seed == (1 << 64) - 1
    assert (read.argument, read.features, read.status) == (3, 7, 256)
    assert (read.input, read.result) == (b"abc", b"xyz")


def test_input_that_does_not_fit_is_refused():
    assert len(Block(input=bytes(block.INPUT_MAXIMUM)).to_bytes()) == block.BLOCK_SIZE
    with pytest.raises(ProgramError, match="1985 bytes do not fit the input area of 1984"):
        Block(input=bytes(block.INPUT_MAXIMUM + 1)).to_bytes()


def test_a_block_without_its_magic_is_refused():
    data = bytearray(Block().to_bytes())
    data[0] ^= 1
    with pytest.raises(ProgramError, match="mandelbrot: the guest block begins with"):
        Block.from_bytes(bytes(data), program="mandelbrot")
