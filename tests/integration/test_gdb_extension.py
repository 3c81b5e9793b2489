"""The commands inside a real gdb: on a live process, on a core, and where gdb itself is wrong."""

import lzma
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_terminal import named_process
from live_processes import compile_target, running

import fpstate.gdb
from fpstate.arch import Component, Cpu
from fpstate.arch.component import AMX
from fpstate.command.main import main
from fpstate.source import ptrace
from fpstate.source.open import open_source
from fpstate.source.process import process_threads
from recorded import OWN

Gdb = Callable[..., str]
INTEL_OPMASK = 1088
EXTENSION = Path(fpstate.gdb.__file__).with_name("extension.py")


@pytest.fixture(scope="module")
def gdb() -> Gdb:
    """Run gdb with commands and return what it prints."""
    found = shutil.which("gdb")
    if not found:
        pytest.skip("gdb is not installed")
    version = "import sys; print(sys.version_info >= (3, 11))"
    probe = subprocess.run(
        [found, "-q", "-nx", "-batch", "-ex", f"python {version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "True" not in probe.stdout:
        pytest.skip("this gdb has no Python 3.11 or newer")

    def run(*arguments: str | Path, commands: tuple[str, ...]) -> str:
        asked = [part for command in (f"source {EXTENSION}", *commands) for part in ("-ex", command)]
        done = subprocess.run(
            [found, "-q", "-nx", "-batch", "-ex", "set debuginfod enabled off", *arguments, *asked],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=240,
        )
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def target(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(gcc, tmp_path_factory.mktemp("live"))


@pytest.fixture
def tile_core(tmp_path: Path) -> Callable[[str], Path]:
    """A core from an Intel processor with AMX, by its writer; two threads with tiles in use."""

    def unpacked(writer: str) -> Path:
        packed = OWN / "generated_intel" / "cores" / f"x64_amx_2t{writer}.core.xz"
        path = tmp_path / "tiles.core"
        path.write_bytes(lzma.decompress(packed.read_bytes()))
        return path

    return unpacked


@pytest.fixture(scope="module")
def amd_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel's core from an AMD processor with AVX-512, whose every register is known."""
    path = tmp_path_factory.mktemp("core") / "avx512.core"
    packed = OWN / "generated" / "cores" / "x64_avx512_3t_quit.kernel.core.xz"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


def shown(text: str) -> dict[str, int]:
    """The registers in what ``fpstate show`` printed."""
    return {
        name: int(bits, 16) for name, bits in re.findall(r"^([a-z_]+\d*)  +(0x[0-9a-f]+)", text, re.MULTILINE)
    }


def gdb_takes_other_offsets(text: str) -> bool:
    """Whether this gdb reads AVX-512 state elsewhere than this processor keeps it (before 14: Intel's offsets)."""
    opmask = Cpu.host().geometry.get(Component.OPMASK)
    version = re.search(r"gdb (\d+)\.", text)
    return (
        version is not None and int(version[1]) < 14 and opmask is not None and opmask.offset != INTEL_OPMASK
    )


def test_the_verb_prints_a_file_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gdb"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_a_live_process_shows_what_ptrace_reads(gdb: Gdb, target: Path) -> None:
    with running(target, "fill", "2") as process:
        images = {each.tid: each.image for each in process_threads(process.pid)}
        text = gdb("-p", str(process.pid), commands=("thread apply 2 fpstate show", "fpstate threads"))
        tid = sorted(images)[1]
        assert f"thread {tid} 'fill 1', from the kernel, by ptrace" in text
        assert shown(text) == {**images[tid].registers.in_use(), "fctrl": 0x77F}
        assert "3 threads, 2 odd" in text
        assert ("otherwise" in text) is gdb_takes_other_offsets(text)


def test_lanes_and_named_registers(gdb: Gdb, target: Path) -> None:
    with running(target, "fill", "1") as process:
        text = gdb("-p", str(process.pid), commands=("thread apply 2 fpstate show -t u8 $xmm1 st0",))
    assert "xmm1  u8: " + " ".join(str(37 + 11 + 3 * b + 1) for b in range(16)) in text
    assert re.search(r"st0 +0x4005c900000000000000 0x1\.92p\+6", text)


def test_info_fpenv_decodes(gdb: Gdb, target: Path) -> None:
    with running(target, "fill", "3") as process:
        text = gdb("-p", str(process.pid), commands=("thread apply 4 info fpenv",))
    assert "MXCSR 0x7f80  rounding zero" in text
    assert "FCW   0x0f7f  rounding zero, precision extended" in text
    assert "8 of 8 registers in use" in text


def test_gdb_can_write_and_the_commands_see_it(gdb: Gdb, target: Path) -> None:
    with running(target, "sleep") as process:
        commands = ("set var $mxcsr = 0x9fc0", "set var $xmm3.v2_int64[0] = 77", "fpstate show xmm3 mxcsr")
        text = gdb("-p", str(process.pid), commands=commands)
    if AMX & ptrace.host_layout().mask and "Couldn't write extended state status: Bad address" in text:
        pytest.skip(
            "a gdb that can write registers on a machine with AMX: 13 sets fewer bytes than the kernel wants"
        )
    assert re.search(r"xmm3 +0x[0-9a-f]{16}000000000000004d", text)
    assert "0x00009fc0 masks=IDZOUP rounding=nearest flags=DAZ+FTZ" in text


def test_a_core_of_an_amd_processor_is_right_where_gdb_is_not(gdb: Gdb, amd_core: Path) -> None:
    text = gdb("-c", amd_core, commands=("fpstate show", "fpstate threads", "info fpenv"))
    registers = shown(text)
    assert f"from the notes of {amd_core}" in text
    assert "layout from: note; 2432 bytes" in text
    for r in (0, 15, 16, 31):
        expected = bytes((7 * r + 3 * b + 1) & 0xFF for b in range(64))
        assert registers[f"zmm{r}"].to_bytes(64, "little") == expected
    assert registers["k3"] == 0x0101010101010101 * 4 ^ 1 << 63
    version = re.search(r"gdb (\d+)\.", text)
    if version is None:
        pytest.skip("this gdb reads every register of the core as it is")
    assert "of these registers otherwise" in text
    assert "zmm0: gdb has " in text


def test_tiles_of_a_kernels_core_are_shown_by_row_and_keys_decoded(
    gdb: Gdb, tile_core: Callable[[str], Path]
) -> None:
    core = tile_core("_quit.kernel")
    threads = sorted(open_source(core), key=lambda thread: thread.tid or 0)
    text = gdb(
        "-c", core, commands=("thread apply all fpstate show tilecfg tmm7", "thread apply all info fpenv")
    )
    small = threads[1].image.registers
    assert f"thread {threads[1].tid}" in text
    assert "palette 1, tmm0 16 rows of 64 bytes, tmm1 15 rows of 60 bytes" in text
    assert re.search(r"^tmm7 +9 rows of 36 bytes$", text, re.MULTILINE)
    data = small["tmm7"].to_bytes(1024, "little")
    for row in range(9):
        bits = int.from_bytes(data[64 * row : 64 * row + 36], "little")
        assert re.search(rf"^ row {row} +{bits:#074x}$", text, re.MULTILINE)
    assert "PKRU  0x55555564" in text
    assert re.search(r"^tmm7 +16 rows of 64 bytes$", text, re.MULTILINE)


def test_of_a_core_that_gdb_wrote_tiles_are_said_not_to_be_known(
    gdb: Gdb, tile_core: Callable[[str], Path]
) -> None:
    text = gdb("-c", tile_core(".gdb18_1"), commands=("fpstate show zmm3",))
    assert "warning SRC017: tmm0-tmm7: not known" in text
    assert re.search(r"^zmm3 +0x[0-9a-f]{128}$", text, re.MULTILINE)


def test_the_layout_comes_from_the_option_where_the_core_does_not_say(gdb: Gdb, amd_core: Path) -> None:
    text = gdb("-c", amd_core, commands=("fpstate show -c no-such-processor",))
    assert "unknown processor 'no-such-processor'" in text
    assert "try: known: " in text


def test_without_a_process_it_says_what_to_do(gdb: Gdb) -> None:
    for command in ("fpstate show", "fpstate threads", "info fpenv"):
        assert "run the program or load a core" in gdb(commands=(command,))


def test_wrong_options_are_refused(gdb: Gdb, target: Path) -> None:
    with running(target, "sleep") as process:
        text = gdb("-p", str(process.pid), commands=("fpstate show -x 5",))
        assert "no option -x" in text
        assert "no such register" in gdb("-p", str(process.pid), commands=("fpstate show xmm77",))
        assert "no lane type 'f31'" in gdb("-p", str(process.pid), commands=("fpstate show -t f31 xmm0",))


def test_the_name_of_a_thread_is_made_printable(gdb: Gdb) -> None:
    with named_process() as process:
        process.rename(b"\x1b[2JX\nforged")
        told = gdb(
            "-p",
            str(process.pid),
            commands=("fpstate show mxcsr", "fpstate threads", "fpstate show \x1b[5mX"),
        )
    assert told.count("\\x1b[2JX\\nforged") >= 2  # gdb itself may name it too
    assert "\\x1b[5mX" in told
    assert "\x1b[2J" not in told
    assert "\x1b[5m" not in told
    assert "\nforged" not in told
