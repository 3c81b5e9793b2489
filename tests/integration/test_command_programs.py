"""``fpstate run FILE``: a program of the user's own, compiled as the documentation says, or refused with the reason."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fpstate.command.main import main
from fpstate.errors import UnsupportedHere
from fpstate.program import include_dir

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.c"))
E_MACHINE, EM_AARCH64 = 18, 183
USES_AVX = """#include "fpstate_guest.h"
FPSTATE_ENTRY(block)
{
    __asm__ volatile("vpcmpeqd %%ymm0, %%ymm0, %%ymm0" ::: "memory");
    fpstate_yield();
    fpstate_finish(block, 0);
}
"""
POINTERS = """#include "fpstate_guest.h"
static int one, two;
int *volatile table[] = {&one, &two};
FPSTATE_ENTRY(block)
{
    block->result[0] = (unsigned char)*table[block->argument & 1];
    fpstate_finish(block, 1);
}
"""
LARGE = """#include "fpstate_guest.h"
static char memory[200000];
FPSTATE_ENTRY(block)
{
    for (int i = 0; i < 200000; i++)
        memory[i] = (char)i;
    fpstate_finish(block, (uint64_t)memory[block->argument] & 1);
}
"""

pytestmark = pytest.mark.usefixtures("native")


def documented_command(example: Path) -> list[str]:
    """The first gcc command of an example's opening comment, without the header's folder and the output."""
    comment = example.read_text().partition("*/")[0].replace("\\\n *", " ")
    (line,) = re.findall(r"^ \*\s+(gcc -O2 .*?) -I", comment, re.MULTILINE)
    return shlex.split(line)


@pytest.fixture(scope="module")
def compile_program(gcc, tmp_path_factory):
    """compile_program(C source or path) -> ELF file, with the command that the example shows."""
    try:
        headers = include_dir()
    except UnsupportedHere as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("own")
    command = documented_command(EXAMPLES[0])

    def build(source: str | Path, name: str = "own", *options: str) -> Path:
        if isinstance(source, str):
            (folder / f"{name}.c").write_text(source)
            source = folder / f"{name}.c"
        subprocess.run(
            [*command, *options, f"-I{headers}", str(source), "-o", str(folder / name)],
            check=True,
            capture_output=True,
        )
        return folder / name

    return build


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> what standard error says; the exit code is 2 and standard output empty."""

    def run(*arguments: str | Path) -> str:
        assert main(["run", "--json", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "\n  try: " in captured.err
        assert "Traceback" not in captured.err
        return captured.err

    return run


def test_there_is_an_example():
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_run_as_their_comments_say(example, compile_program):
    program = compile_program(example, example.stem)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "fpstate",
            "run",
            "--json",
            "--vcpus",
            "50",
            "--argument",
            "1000",
            str(program),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert (report["finished"], report["checked"], report["wrong"]) == (50, 0, 0)
    assert report["yields"] == 50
    assert report["leaked_bytes"] == 0


def test_a_flat_binary_runs_whatever_its_name(compile_program, tmp_path, capsys):
    if shutil.which("objcopy") is None:
        pytest.skip("objcopy is not installed")
    script = f"-Wl,--build-id=none,-T,{include_dir() / 'flat.ld'}"
    elf = compile_program(EXAMPLES[0], "flat_example", script)
    for name, options in (("example.bin", ()), ("example.image", ("--flat",))):
        flat = tmp_path / name
        subprocess.run(["objcopy", "-O", "binary", "-j", ".flat", str(elf), str(flat)], check=True)
        assert main(["run", "--json", "--no-audit", "--vcpus", "3", *options, str(flat)]) == 0
        assert json.loads(capsys.readouterr().out)["finished"] == 3


def test_own_programs_and_built_in_ones_take_turns(compile_program, capsys):
    program = compile_program(EXAMPLES[0], "in_turn")
    arguments = ["--vcpus", "9", "--argument", "1000", str(program), "canary", "spin"]
    assert main(["run", "--json", "--no-audit", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["finished"], report["checked"], report["wrong"]) == (9, 6, 0)


def test_a_program_that_fails_says_with_what_code(compile_program, capsys):
    program = compile_program(EXAMPLES[0], "too_long")
    assert main(["run", "--json", "--no-audit", "--vcpus", "1", "--argument", "5000", str(program)]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert problem == "vCPU 0: too_long: failed with code 0x101"


def test_a_program_that_uses_avx_gets_room_for_it(compile_program, capsys, native):
    if not native.features()["managed_mask"] >> 2 & 1:
        pytest.skip("AVX is not enabled (XCR0[2])")
    program = compile_program(USES_AVX, "uses_avx")
    assert main(["run", "--json", "--no-audit", "--vcpus", "2", str(program)]) == 0
    assert json.loads(capsys.readouterr().out)["growths"] == 2


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("notes.txt", b"these are no instructions\n", "is text, not machine code"),
        ("script", b"#!/bin/sh\nexit\n", "is a script, not a guest program"),
        ("picture", b"\x89PNG\r\n\x1a\n" + bytes(64), "is a PNG picture"),
        ("noise", bytes(range(128, 256)), "is neither ELF nor named as a flat binary"),
        ("nothing.bin", b"", "is empty"),
    ],
)
def test_a_file_that_is_not_code_is_refused(name, content, what, refused, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert f"fpstate: {path}: {what}" in refused(path)


def test_a_program_for_another_machine_is_refused(compile_program, refused, tmp_path):
    data = bytearray(compile_program(EXAMPLES[0], "arm").read_bytes())
    struct.pack_into("<H", data, E_MACHINE, EM_AARCH64)
    path = tmp_path / "arm"
    path.write_bytes(data)
    assert "AArch64, not for x86-64" in refused(path)


def test_relocations_that_are_left_are_named(compile_program, refused):
    text = refused(compile_program(POINTERS, "pointers"))
    assert "has relocations left, the first R_X86_64_RELATIVE at 0x" in text
    assert "keep no addresses in its data" in text


def test_a_program_larger_than_its_memory_is_refused_and_more_memory_helps(compile_program, refused, capsys):
    program = compile_program(LARGE, "large")
    text = refused(program)
    assert re.search(r"large: needs \d{6} bytes of memory; the vCPU has \d+ for it", text)
    assert "Give the vCPU more memory" in text
    assert main(["run", "--json", "--no-audit", "--vcpus", "2", "--memory", "512k", str(program)]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] == 2


def test_a_missing_file_and_a_misspelt_name_are_refused(refused, tmp_path):
    assert "cannot be read: No such file or directory" in refused(tmp_path / "missing.elf")
    text = refused("sse_nbdy")
    assert "No such file or directory" in text
    assert "Built in are: x87_pi, sse_nbody" in text


def test_a_fault_that_does_not_exist_lists_those_that_do(refused):
    assert "try: known: divide_by_zero, " in refused("faults/none")


def test_a_directory_is_refused(refused, tmp_path):
    assert "is a directory" in refused(tmp_path)
