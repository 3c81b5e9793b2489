"""Registers set in a running process: read back, and really there."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_processes import assert_free, compile_target, running

from fpstate.command.main import main
from fpstate.errors import RegisterError, SourceError
from fpstate.image import Image, Registers
from fpstate.source import ptrace
from fpstate.source.process import process_threads
from fpstate.source.rewrite import ReadBackError, rewrite

pytestmark = pytest.mark.usefixtures("core")


@dataclass
class Reporter:
    """A process that stores MXCSR, FCW, xmm8 and the upper half of ymm9 all the time."""

    pid: int
    path: Path

    def registers(self) -> tuple[int, int, int, int]:
        rounds = self._rounds()
        while self._rounds() < rounds + 2:
            time.sleep(0.001)
        data = self.path.read_bytes()
        mxcsr, fcw = struct.unpack_from("<I4xH", data)
        return mxcsr, fcw, int.from_bytes(data[16:32], "little"), int.from_bytes(data[32:48], "little")

    def _rounds(self) -> int:
        return int.from_bytes(self.path.read_bytes()[64:72], "little")


@pytest.fixture(scope="module")
def target(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(gcc, tmp_path_factory.mktemp("live"))


@pytest.fixture
def reporter(target: Path, tmp_path: Path) -> Iterator[Reporter]:
    path = tmp_path / "shared"
    path.write_bytes(bytes(4096))
    with running(target, "report", "1", path) as process:
        yield Reporter(process.pid, path)
        assert_free(process.pid)


@pytest.fixture
def avx() -> None:
    if 2 not in ptrace.host_layout():
        pytest.skip("AVX is not enabled (XCR0[2])")


def test_the_running_process_has_the_values(reporter: Reporter, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["set", str(reporter.pid), "mxcsr=0xbf80", "fctrl=0x27f", "xmm8=f32:1.0,2.0,-0.5,inf"]) == 0
    assert reporter.registers()[:3] == (0xBF80, 0x27F, 0x7F800000BF000000400000003F800000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["mxcsr", "0x00001f80", "->", "0x0000bf80"]
    assert lines[2].split()[-1] == "0x7f800000bf000000400000003f800000"


def test_mxcsr_arrives_where_avx_alone_would_state_it(reporter: Reporter, avx: None) -> None:
    """An image with AVX, without SSE and with MXCSR 1F81H reads back as written, but is not what the task gets."""

    def change(registers: Registers) -> None:
        for index in range(16):
            registers[f"xmm{index}"] = 0
        registers["ymm9"], registers["mxcsr"] = 5 << 128, 0x1F81

    rewrite(reporter.pid, change)
    assert reporter.registers() == (0x1F81, 0x37F, 0, 5)


def test_an_mxcsr_that_only_the_image_has_is_lost(reporter: Reporter, avx: None) -> None:
    """The control: without the SSE bit the kernel says 1F81H, while the processor has 1F80H."""

    def change(regset: bytes) -> bytes:
        image = Image(bytearray(regset), ptrace.host_layout())
        image.store.view[512:520] = (4).to_bytes(8, "little")
        image.store.view[24:28] = (0x1F81).to_bytes(4, "little")
        return image.to_bytes()

    _, after, _ = ptrace.edit(reporter.pid, ptrace.host_layout(), 2, change)
    assert after is not None
    if reporter.registers()[0] == 0x1F81:
        pytest.skip("this kernel restores the standard format, where AVX carries MXCSR")
    assert after[24:28] == (0x1F81).to_bytes(4, "little")


def test_mxcsr_can_be_set_back_to_its_initial_value(reporter: Reporter) -> None:
    for value in (0x9FC0, 0x1F80, 0x7F80, 0x1F80):
        main(["set", str(reporter.pid), f"mxcsr={value:#x}"])
        assert reporter.registers()[0] == value


def test_one_thread_alone_is_written(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(target, "fill", "3") as process:
        before = {each.tid: each.image for each in process_threads(process.pid)[1:]}
        tid = next(each.tid for each in process_threads(process.pid) if each.name == "fill 2")
        assert main(["set", str(process.pid), "--thread", str(tid), "st3=-0x1.8p+4", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["schema"] == "fpstate-set/1"
        assert report["registers"][0]["after"] == "0xc003c000000000000000 (-0x1.8p+4)"
        after = {each.tid: each.image for each in process_threads(process.pid)[1:]}
        assert {tid for tid in after if after[tid] != before[tid]} == {tid}
        assert_free(process.pid)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["xmm8=1", "nonsense=1"], "no such register"),
        (["xmm8=1", "bnd0raw=1"], "no room"),
        (["xmm8=1", "mxcsr=0xffffffff"], "reserved"),
        (["xmm8=1", "fctrl=0x10000"], "does not fit"),
        (["xmm8=f32:1,2"], "2 lanes"),
        (["xmm8=f32:1,2,3,x"], "'x' is no f32"),
        (["xmm8=1", "st0=one"], "st0"),
        (["xmm8=1", "st0=0.1"], "not exact"),
        (["xmm8=5", "mxcsr=0x1f80", "xmm8=6"], "a later assignment"),
        (["xmm8"], "REGISTER=VALUE"),
    ],
)
def test_nothing_is_written_when_anything_is_refused(
    reporter: Reporter, assignments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = process_threads(reporter.pid)[0].image.to_bytes()
    assert main(["set", str(reporter.pid), *assignments]) == 2
    assert message in capsys.readouterr().err
    assert process_threads(reporter.pid)[0].image.to_bytes() == before


def test_what_is_bound_to_end_the_process_is_written_by_force_alone(
    reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rule is judged on PKRU and tiles in tests/unit/source/test_lethal.py; here x87, which every processor has."""
    before = process_threads(reporter.pid)[0].image.to_bytes()
    deadly = ["set", str(reporter.pid), "fctrl=0x37e", "fstat=1"]
    assert main(deadly) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "SIGFPE at its next x87 instruction" in told.err
    assert "--force" in told.err
    assert process_threads(reporter.pid)[0].image.to_bytes() == before
    assert main([*deadly, "--force"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0].split() == ["fctrl", "0x037f", "->", "0x037e"]
    assert "note: fstat 0x1 has flags that fctrl 0x37e unmasks (invalid)" in told.err
    assert "note: fctrl: unmasks invalid" in told.err


def test_pkru_that_closes_key_0_needs_force(reporter: Reporter, capsys: pytest.CaptureFixture[str]) -> None:
    if 9 not in ptrace.host_layout():
        pytest.skip("PKRU is not enabled (XCR0[9])")
    assert main(["set", str(reporter.pid), "pkru=0xffffffff"]) == 2
    assert "key 0" in capsys.readouterr().err
    reporter.registers()


def test_raw_bits_and_negative_numbers(reporter: Reporter) -> None:
    assert main(["set", str(reporter.pid), "xmm8=-2", "st1=bits:0x7fff8000000000000001"]) == 0
    image = process_threads(reporter.pid)[0].image
    assert image.registers["xmm8"] == (1 << 128) - 2
    assert image.registers["st1"] == 0x7FFF8000000000000001


def test_a_thread_of_another_process_is_refused(
    reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["set", str(reporter.pid), "--thread", "1", "mxcsr=0x1f80"]) == 2
    assert "no thread 1" in capsys.readouterr().err


def test_a_read_back_that_differs_is_an_error_that_names_the_registers(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ptrace.edit

    def corrupting(*arguments: object) -> tuple[bytes, bytes | None, float]:
        before, after, stop = original(*arguments)
        assert after is not None
        return before, after[:160] + bytes([after[160] ^ 1]) + after[161:], stop

    monkeypatch.setattr(ptrace, "edit", corrupting)
    with pytest.raises(ReadBackError, match="mm0") as caught:
        rewrite(reporter.pid, lambda registers: registers.__setitem__("xmm0", 4))
    assert caught.value.exit_code == 1
    assert len(caught.value.differences) == 1


def test_what_the_kernel_refuses_is_said(reporter: Reporter) -> None:
    def change(regset: bytes) -> bytes:
        return regset[:520] + b"\x01" + regset[521:]

    with pytest.raises(SourceError, match="EINVAL"):
        ptrace.edit(reporter.pid, ptrace.host_layout(), 2, change)


def test_an_edit_that_takes_too_long_is_given_up_and_the_thread_goes_on(reporter: Reporter) -> None:
    def change(regset: bytes) -> bytes:
        assert_free(reporter.pid)
        return regset

    with pytest.raises(SourceError, match="in time"):
        ptrace.edit(reporter.pid, ptrace.host_layout(), 0.1, change)


def test_registers_that_do_not_exist_here_raise_their_name(reporter: Reporter) -> None:
    with pytest.raises(RegisterError) as caught:
        rewrite(reporter.pid, lambda registers: registers.__setitem__("bnd0raw", 1))
    assert caught.value.register == "bnd0raw"
