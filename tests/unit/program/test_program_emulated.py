"""The built-in programs on an emulated processor with AVX-512, for machines that have none.

Needs Bochs with its BIOS (Debian: bochs, bochsbios, vgabios). It is unlike real hardware in one
way that matters here: nothing is preempted.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from fpstate.program import BUILTIN, Block, canary_pattern, include_dir, parse_probe
from fpstate.program.block import FINISHED, RESERVED

HERE = Path(__file__).parent
AVX512 = 0xE7
SECTOR = 512
DISK_SIZE = 2 * 16 * 63 * SECTOR

CONFIGURATION = """\
cpu: model=corei7_skylake_x, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=32, host=32
romimage: file={share}/bochs/BIOS-bochs-latest
vgaromimage: file={share}/vgabios/vgabios.bin
display_library: rfb, options="timeout=0"
ata0-master: type=disk, path={folder}/disk, mode=flat, cylinders=2, heads=16, spt=63
boot: disk
com1: enabled=1, mode=file, dev={folder}/block
log: {folder}/log
panic: action=fatal
"""


@pytest.fixture(scope="module")
def bochs(built) -> Path:
    found = shutil.which("bochs-bin") or shutil.which("bochs")
    if found is None or shutil.which("gcc") is None:
        pytest.skip("no Bochs, or no gcc, to emulate AVX-512 with")
    share = Path(found).parents[1] / "share"
    for needed in ("bochs/BIOS-bochs-latest", "vgabios/vgabios.bin"):
        if not (share / needed).exists():
            pytest.skip(f"Bochs lacks {share / needed}")
    return Path(found)


@pytest.fixture
def emulate(bochs, tmp_path):
    """emulate(program, seed, argument, **defines) -> result bytes."""

    def run(program, seed, argument, **defines):
        image = program.memory()
        sectors = -(-len(image) // SECTOR)
        numbers = {"SEED": seed, "ARGUMENT": argument, "FEATURES": AVX512, "SECTORS": sectors, **defines}
        disk = tmp_path / "disk"
        command = ["gcc", "-nostdlib", "-static", "-no-pie", f"-I{include_dir()}"]
        command += [f"-D{name}={value}" for name, value in numbers.items()]
        command += ["-Wl,-Ttext=0x7C00,--build-id=none,--oformat=binary"]
        subprocess.run([*command, str(HERE / "bare_host.S"), "-o", str(disk)], check=True)
        disk.write_bytes((disk.read_bytes() + image).ljust(DISK_SIZE, b"\0"))
        share = bochs.parents[1] / "share"
        (tmp_path / "bochsrc").write_text(CONFIGURATION.format(share=share, folder=tmp_path))
        (tmp_path / "commands").write_text("c\n")
        subprocess.run(
            [str(bochs), "-q", "-f", str(tmp_path / "bochsrc"), "-rc", str(tmp_path / "commands")],
            env={**os.environ, "BXSHARE": str(share / "bochs")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,  # Bochs calls every shutdown a failure
        )
        block = (tmp_path / "block").read_bytes()
        assert struct.unpack_from("<I", block, RESERVED) == (FINISHED,)
        return Block.from_bytes(block).result

    return run


@pytest.mark.parametrize(
    "name", sorted(name for name, builtin in BUILTIN.items() if not builtin.required & ~AVX512)
)
def test_every_program_answers_as_expected(name, emulate):
    builtin = BUILTIN[name]
    result = emulate(builtin.load(), 7, 6)
    assert builtin.check(result, 7, 6, AVX512) is None


@pytest.mark.parametrize("seed", [0, 0xDEADBEEFCAFEBABE])
@pytest.mark.parametrize("argument", [0, 1, 41])
@pytest.mark.parametrize("name", ["avx512_matmul", "opmask_sieve", "canary"])
def test_the_programs_that_need_avx512_answer_as_expected(name, seed, argument, emulate):
    builtin = BUILTIN[name]
    result = emulate(builtin.load(), seed, argument)
    assert builtin.check(result, seed, argument, AVX512) is None


@pytest.mark.parametrize(
    ("change", "register"),
    [
        ("knotq k5, k5", "k5"),
        ("vpaddq zmm31, zmm31, zmm31", "zmm31"),
        ("vpaddq zmm16, zmm16, zmm17", "zmm16"),
        ("vmovdqa ymm7, ymm7", "zmm7"),
        ("vzeroupper", "zmm0"),
    ],
)
def test_the_canary_names_an_avx512_register_that_was_changed(change, register, emulate):
    builtin = BUILTIN["canary"]
    # The first yield goes through the port, which nobody listens to there; the second through gs.
    result = emulate(builtin.load(), 5, 30, INPUT=10, CHANGE=change)
    verdict = builtin.check(result, 5, 30, AVX512)
    assert verdict is not None
    assert f"the first in {register} at iteration 20: " in verdict
    assert f"instead of {canary_pattern(5, AVX512)[register]:#x}" in verdict


def test_the_probe_reads_the_upper_half_of_the_vector_file(emulate):
    result = emulate(BUILTIN["probe"].load(), 0, 1)
    assert BUILTIN["probe"].check(result, 0, 1, AVX512) is None
    registers = parse_probe(result, AVX512)
    assert registers["zmm31"] == registers["k7"] == 0
