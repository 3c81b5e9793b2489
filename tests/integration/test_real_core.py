"""A core that this machine writes of a process whose registers are known, read back through ``fpstate show``."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fpstate.command.main import main

PROGRAM = r"""
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static uint8_t vectors[16][32] __attribute__((aligned(32)));
static const long double extended = 3.14159265358979323846264338327950288L;

int main(int argc, char **argv)
{
    (void)argv;
    for (int r = 0; r < 16; r++)
        for (int b = 0; b < 32; b++)
            vectors[r][b] = (uint8_t)(7 * r + 3 * b + 1);
    uint32_t mxcsr = 0x5f80;
    uint16_t fcw = 0x0f7f;
    if (argc > 1 && write(1, "ready\n", 6) != 6)
        return 1;
    __asm__ volatile(
        "ldmxcsr %[mxcsr]\n fldcw %[fcw]\n fld1\n fldt %[extended]\n"
        "vmovdqa 0(%[v]), %%ymm0\n vmovdqa 32(%[v]), %%ymm1\n vmovdqa 64(%[v]), %%ymm2\n"
        "vmovdqa 96(%[v]), %%ymm3\n vmovdqa 128(%[v]), %%ymm4\n vmovdqa 160(%[v]), %%ymm5\n"
        "vmovdqa 192(%[v]), %%ymm6\n vmovdqa 224(%[v]), %%ymm7\n vmovdqa 256(%[v]), %%ymm8\n"
        "vmovdqa 288(%[v]), %%ymm9\n vmovdqa 320(%[v]), %%ymm10\n vmovdqa 352(%[v]), %%ymm11\n"
        "vmovdqa 384(%[v]), %%ymm12\n vmovdqa 416(%[v]), %%ymm13\n vmovdqa 448(%[v]), %%ymm14\n"
        "vmovdqa 480(%[v]), %%ymm15\n"
        "test %[wait], %[wait]\n jz 2f\n"
        "1: pause\n jmp 1b\n"
        "2: ud2\n"
        : : [v] "r"(vectors), [mxcsr] "m"(mxcsr), [fcw] "m"(fcw), [extended] "m"(extended),
            [wait] "r"(argc - 1) : "memory");
    return 0;
}
"""
EXPECTED = {
    **{
        f"ymm{r}": int.from_bytes(bytes((7 * r + 3 * b + 1) & 0xFF for b in range(32)), "little")
        for r in range(16)
    },
    **{"mxcsr": 0x5F80, "fctrl": 0x0F7F, "fstat": 0x3000, "ftag_abridged": 0xC0, "ftag": 0x0FFF},
    **{"st0": 0x4000_C90FDAA2_2168C235, "st1": 0x3FFF << 64 | 1 << 63},
}


@pytest.fixture(scope="module")
def program(gcc, tmp_path_factory):
    if " avx " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("AVX (CPUID.1:ECX[28])")
    folder = tmp_path_factory.mktemp("program")
    source = folder / "known.c"
    source.write_text(PROGRAM)
    subprocess.run([gcc, "-O1", "-o", folder / "known", source], check=True)
    return folder / "known"


def wrong_registers(path, capsys):
    """Compare what show says of a core's only thread; return the names whose values are not as expected."""
    main(["show", "--json", "--all", str(path)])
    (thread,) = json.loads(capsys.readouterr().out)["threads"]
    shown = {name: int(value, 16) for name, value in thread["registers"].items()}
    return {name for name, value in EXPECTED.items() if shown.get(name) != value}, thread


def test_the_kernels_core_of_a_process_shows_what_it_had_in_its_registers(program, tmp_path, capsys):
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core_pattern is {pattern!r}, no plain file name")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("RLIMIT_CORE: the hard limit is 0")

    def allow_cores():
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))

    ended = subprocess.run([program], cwd=tmp_path, preexec_fn=allow_cores, check=False)
    assert ended.returncode == -signal.SIGILL
    written = list(tmp_path.iterdir())
    if not written:
        pytest.skip("the kernel wrote no core here (CONFIG_COREDUMP, or the sandbox)")
    wrong, thread = wrong_registers(written[0], capsys)
    assert wrong == set()
    assert thread["layout_source"] in ("note", "inferred")
    assert thread["findings"] == []


def test_gdbs_core_of_a_process_shows_what_gdb_read(program, tmp_path, capsys):
    """No oracle for more than AVX: gdb before 14 damages what an AMD processor keeps behind it."""
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    with subprocess.Popen([program, "wait"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            core = tmp_path / "gcore"
            made = subprocess.run(
                ["gdb", "-batch", "-nx", "-p", str(process.pid), "-ex", f"generate-core-file {core}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            os.kill(process.pid, signal.SIGKILL)
    if not core.exists():
        pytest.skip(f"gdb wrote no core: {made.stderr.strip()[-200:]}")
    wrong, thread = wrong_registers(core, capsys)
    assert wrong == set()
    assert {finding["id"] for finding in thread["findings"]} >= {"SRC001"}


def test_another_value_would_be_noticed(program, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXPECTED, "ymm7", EXPECTED["ymm7"] ^ 1 << 200)
    with pytest.raises(AssertionError, match="ymm7"):
        test_gdbs_core_of_a_process_shows_what_gdb_read(program, tmp_path, capsys)
