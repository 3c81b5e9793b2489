"""Program files: what a compiler makes is loaded, what cannot run is refused with the reason."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpstate.errors import ProgramError, UnsupportedHere
from fpstate.program import BUILTIN, Program, flat_file, include_dir
from fpstate.program.load import FILE_MAXIMUM

EXAMPLE = Path(__file__).parents[2] / "examples" / "dot_product.c"
FREESTANDING = (
    "-O2",
    "-ffreestanding",
    "-nostdlib",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
)
STATIC_PIE = (*FREESTANDING, "-static-pie")
SMALL = '#include "fpstate_guest.h"\nFPSTATE_ENTRY(block) { fpstate_finish(block, 0); }\n'
POINTERS = """#include "fpstate_guest.h"
static int one, two;
int *volatile table[] = {&one, &two};
FPSTATE_ENTRY(block)
{
    block->result[0] = (unsigned char)*table[block->argument & 1];
    fpstate_finish(block, 1);
}
"""
CALLS = """#include "fpstate_guest.h"
double cosine(double);
FPSTATE_ENTRY(block) { block->result[0] = (unsigned char)cosine(1.0); fpstate_finish(block, 1); }
"""
THREAD_LOCAL = """#include "fpstate_guest.h"
static _Thread_local int counter;
FPSTATE_ENTRY(block) { block->result[0] = (unsigned char)++counter; fpstate_finish(block, 1); }
"""


@pytest.fixture(scope="module")
def compile_program(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile programs with")
    try:
        headers = include_dir()
    except UnsupportedHere as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("programs")

    def build(source, *flags, name="program", sources=()):
        path = folder / f"{name}.c"
        path.write_text(source)
        output = folder / name
        command = ["gcc", "-Wall", "-Wextra", *flags, f"-I{headers}", str(path), *sources, "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return output

    return build


@pytest.fixture(scope="module")
def static_pie(compile_program):
    """The bytes of a good program, to damage."""
    return compile_program(EXAMPLE.read_text(), *STATIC_PIE, name="good").read_bytes()


def refusal(path, **options):
    with pytest.raises(ProgramError) as caught:
        Program.from_file(path, **options)
    assert str(caught.value).startswith(str(path))
    assert caught.value.path == str(path)
    assert caught.value.help
    return str(caught.value)


def refusal_of_bytes(data, **options):
    with pytest.raises(ProgramError) as caught:
        Program.from_bytes(data, path="damaged", **options)
    assert caught.value.help
    return str(caught.value)


# What is loaded


def test_a_static_pie_is_loaded_with_its_segments(compile_program):
    program = Program.from_file(compile_program(EXAMPLE.read_text(), *STATIC_PIE, name="dot_product"))
    assert program.name == "dot_product"
    assert any(segment.executable and not segment.writable for segment in program.segments)
    assert any(segment.writable and segment.memory_size > len(segment.data) for segment in program.segments)
    assert any(s.executable and s.offset <= program.entry < s.offset + len(s.data) for s in program.segments)
    assert len(program.memory()) == program.size >= 2 * 1024 * 8


def test_the_flat_linker_script_makes_a_flat_binary(compile_program, tmp_path):
    script = f"-Wl,--build-id=none,-T,{include_dir() / 'flat.ld'}"
    linked = compile_program(EXAMPLE.read_text(), *STATIC_PIE, script, name="flat_dot_product")
    flat = tmp_path / "dot_product.bin"
    subprocess.run(["objcopy", "-O", "binary", "-j", ".flat", str(linked), str(flat)], check=True)
    program = Program.from_file(flat)
    assert program.entry == Program.from_file(linked).entry == 0
    assert Program.from_file(linked).memory().startswith(program.memory())
    (segment,) = program.segments
    assert segment.writable
    assert segment.executable


def test_a_flat_binary_under_another_name_needs_to_be_called_flat(tmp_path):
    other = tmp_path / "program.img"
    other.write_bytes(b"\xb8\0\0\0\0\xe7\xf5")
    assert "neither ELF nor named as a flat binary" in refusal(other)
    assert Program.from_file(other, format="flat").size == 7


def test_an_object_without_relocations_is_loaded(compile_program):
    flags = (*FREESTANDING, "-c", "-fPIC")
    program = Program.from_file(compile_program(SMALL, *flags, name="small.o"))
    assert program.entry == 0
    assert program.segments[0].executable


def test_an_object_begins_at_its_entry_function(compile_program):
    source = "int later(int x) { return x * 3; }\n" + SMALL.replace(
        "FPSTATE_ENTRY(block)", "void _start(struct fpstate_block *block)"
    )
    program = Program.from_file(compile_program(source, *FREESTANDING, "-c", "-fPIC", name="second.o"))
    assert program.entry > 0


def test_built_in_programs_need_no_relocation_and_start_at_0():
    for name, builtin in BUILTIN.items():
        try:
            program = builtin.load()
        except UnsupportedHere as missing:
            pytest.skip(str(missing))
        assert (program.name, program.entry, program.features) == (name, 0, builtin.required)
        assert program.memory() == flat_file(name).read_bytes()


def test_a_program_that_is_not_built_is_unsupported_here():
    with pytest.raises(UnsupportedHere, match=r"no_such_program\.bin") as caught:
        flat_file("no_such_program")
    assert "programs/build.sh" in caught.value.help


def test_a_program_larger_than_the_vcpu_is_refused():
    program = Program.from_bytes(b"\x90\xe7\xf5" * 1000, path="big", format="flat")
    program.check_fits(3000)
    with pytest.raises(ProgramError, match="needs 3000 bytes of memory; the vCPU has 2999"):
        program.check_fits(2999)


# Files that are no programs


def test_files_that_are_not_code_are_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("dot product, twice\n")
    script = tmp_path / "script.bin"
    script.write_text("#!/bin/sh\nexit 0\n")
    picture = tmp_path / "picture"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    empty = tmp_path / "empty.bin"
    empty.touch()
    assert "is text, not machine code" in refusal(text)
    assert "is text, not machine code" in refusal(text, format="flat")
    assert "is a script" in refusal(script)
    assert "is a PNG picture" in refusal(picture)
    assert "is empty" in refusal(empty)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is a directory" in refusal(tmp_path)
    assert "is not a regular file" in refusal(pipe)
    assert "cannot be read: No such file" in refusal(tmp_path / "missing")
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\xf4")
    secret.chmod(0)
    assert "cannot be read: Permission denied" in refusal(secret)


def test_a_huge_file_is_refused_unread(tmp_path):
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(FILE_MAXIMUM + 1)
    assert f"limited to {FILE_MAXIMUM}" in refusal(huge)


# ELF files that cannot run


def test_an_ordinary_executable_is_refused(compile_program):
    path = compile_program("int main(void) { return 0; }\n", name="ordinary")
    message = refusal(path)
    assert "dynamic executable" in message
    assert "ld-linux" in message
    assert "libc.so" in message


def test_a_shared_library_is_refused(compile_program):
    path = compile_program(
        "int three(void) { return 3; }\n", "-shared", "-fPIC", *FREESTANDING, name="three.so"
    )
    assert "entry point, offset 0x0, is not in executable code" in refusal(path)


def test_a_fixed_address_is_refused(compile_program):
    path = compile_program(SMALL, *FREESTANDING, "-static", "-no-pie", name="fixed")
    assert "linked to a fixed address" in refusal(path)


def test_relocations_are_refused_and_the_first_is_named(compile_program):
    path = compile_program(POINTERS, *STATIC_PIE, name="pointers")
    message = refusal(path)
    assert "relocations left, the first R_X86_64_RELATIVE at 0x" in message
    assert " in .data" in message
    assert "addend 0x" in message


def test_relocations_of_an_object_are_refused_with_their_symbol(compile_program):
    path = compile_program(POINTERS, *FREESTANDING, "-c", "-fPIC", name="pointers.o")
    message = refusal(path)
    assert "relocations left, the first R_X86_64_" in message
    assert "symbol table" in message or "symbol .bss" in message


def test_undefined_symbols_are_refused_by_name(compile_program):
    path = compile_program(CALLS, *FREESTANDING, "-c", "-fPIC", name="calls.o")
    assert "undefined symbols: cosine" in refusal(path)
    linked = compile_program(CALLS, *FREESTANDING, "-fPIC", "-shared", "-Wl,-e,_start", name="calls.so")
    message = refusal(linked)
    assert "undefined symbol" in message
    assert "cosine" in message


def test_thread_local_storage_is_refused(compile_program):
    assert "thread-local storage" in refusal(compile_program(THREAD_LOCAL, *STATIC_PIE, name="thread_local"))


def test_an_elf_file_is_not_flat(static_pie):
    assert "is an ELF file, not a flat binary" in refusal_of_bytes(static_pie, format="flat")


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (4, 1, "not a 64-bit ELF file"),
        (5, 2, "big-endian"),
        (16, 4, "core dump"),
        (16, 9, "unknown type 9"),
        (18, 183, "is for AArch64, not for x86-64"),
        (18, 3, "is for Intel 80386"),
        (18, 250, "is for machine 250"),
    ],
)
def test_foreign_elf_files_are_refused(static_pie, offset, value, reason):
    foreign = bytearray(static_pie)
    foreign[offset] = value
    assert reason in refusal_of_bytes(bytes(foreign))


# Damaged and hostile files


def first_load(data):
    """Offset of the program header of the first segment in memory."""
    (table,) = struct.unpack_from("<Q", data, 32)
    return table


@pytest.mark.parametrize("offset", [8, 16, 32, 40], ids=["offset", "address", "file size", "memory size"])
@pytest.mark.parametrize("value", [1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_huge_numbers_in_a_segment_are_refused(static_pie, offset, value):
    hostile = bytearray(static_pie)
    struct.pack_into("<Q", hostile, first_load(hostile) + offset, value)
    refusal_of_bytes(bytes(hostile))


def test_a_cut_file_is_refused_at_every_length(static_pie):
    for length in range(1, len(static_pie), 37):
        refusal_of_bytes(static_pie[:length])


# Where the tables lie: headers at the front, section headers at the end; and anywhere else.
places = st.integers(0, 0x240) | st.integers(-0x400, -1) | st.integers(0, 0x3FFF)


@settings(max_examples=300, deadline=2000)
@given(changes=st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", ["linked", "object"])
def test_a_damaged_file_is_loaded_or_refused_but_nothing_else(kind, changes, damaged_sources):
    damaged = bytearray(damaged_sources[kind])
    for offset, value in changes:
        damaged[offset % len(damaged)] = value
    try:
        program = Program.from_bytes(bytes(damaged), path="damaged")
    except ProgramError:
        return
    assert 0 <= program.entry < program.size


@pytest.fixture(scope="module")
def damaged_sources(compile_program, static_pie):
    """A linked program and an object file, to damage."""
    flags = (*FREESTANDING, "-c", "-fPIC")
    return {"linked": static_pie, "object": compile_program(SMALL, *flags, name="fuzzed.o").read_bytes()}
