"""The example program does what its comment says."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fpstate.program import Program, include_dir

EXAMPLE = Path(__file__).parents[3] / "examples" / "dot_product.c"


@pytest.fixture(scope="module")
def dot_product(tmp_path_factory, built):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the example with")
    path = tmp_path_factory.mktemp("example") / "dot_product"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static-pie"]
    options = ["-fno-stack-protector", f"-I{include_dir()}"]
    subprocess.run([*command, *options, str(EXAMPLE), "-o", str(path)], check=True)
    return Program.from_file(path)


def expected(seed, length):
    elements = []
    for _ in range(2 * length):
        seed = (seed * 5 + 1) % (1 << 64)
        elements.append((seed >> 56) - 128)
    return sum(a * b for a, b in zip(elements[::2], elements[1::2], strict=True))


@pytest.mark.parametrize(("seed", "length"), [(0, 1), (3, 1000), (1 << 63, 1024)])
def test_the_example_yields_once_and_answers(seed, length, run, dot_product):
    ended = run(dot_product, seed, length)
    assert (ended.operation, ended.yields) == (0, 1)
    assert struct.unpack("<dQ", ended.result) == (expected(seed, length), length)


def test_the_example_fails_on_vectors_that_are_too_long(run, dot_product):
    ended = run(dot_product, 1, 1025)
    assert ended.operation == ended.status == 257
