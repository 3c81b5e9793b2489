"""``fpstate convert`` writes what the target can hold, and says what it cannot."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from fpstate.arch import Cpu, Format, Layout
from fpstate.command.main import main
from fpstate.image import Image
from fpstate.image.legacy import from_fsave, from_fxsave, to_fsave
from fpstate.source.checkpoint import SavedState
from fpstate.source.guest_state import GuestState
from fpstate.source.state_file import write_state
from fpstate.testing import build_image, build_layout, random_image

SPR = Layout.standard(Cpu.catalog("sapphire-rapids"))
ZEN4 = Layout.standard(Cpu.catalog("zen4"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A Sapphire Rapids state with something in ZMM17 and PKRU."""
    path = tmp_path / "in.bin"
    path.write_bytes(build_image(SPR, {"zmm17": 17, "pkru": 0x5554}).to_bytes())
    return path


def test_another_processor(state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.bin"
    assert main(["convert", str(state), str(out), "--from-cpu", "sapphire-rapids", "--to-cpu", "zen4"]) == 0
    assert Image(out.read_bytes(), ZEN4).registers.in_use() == {"zmm17": 17, "pkru": 0x5554}
    assert capfd.readouterr() == ("", "")


def test_the_output_is_for_its_owner_alone_and_nothing_else_is_left(state: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    out.chmod(0o644)
    assert main(["convert", str(state), str(out), "--cpu", "sapphire-rapids"]) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin", "out.bin"]


def test_a_failed_write_leaves_the_old_file(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    assert main(["convert", str(state), str(out), "--cpu", "sapphire-rapids"]) == 2
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin", "out.bin"]


def test_a_device_is_written_to_and_stays_one(state: Path) -> None:
    assert main(["convert", str(state), "/dev/null", "--cpu", "sapphire-rapids"]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_loss_is_refused_and_nothing_is_written(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.bin"
    arguments = ["convert", str(state), str(out), "--from-cpu", "sapphire-rapids", "--to-cpu", "haswell"]
    assert main(arguments) == 1
    assert not out.exists()
    error = capsys.readouterr().err
    assert "would be lost: PKRU: the target has no place for it\nfpstate:   pkru = 0x5554" in error
    assert "--drop hi16_zmm,pkru" in error
    assert main([*arguments, "--drop", "hi16_zmm,PKRU", "--no-values"]) == 0
    error = capsys.readouterr().err
    assert "lost: PKRU" in error
    assert "5554" not in error


def test_the_record_as_json(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.bin"
    arguments = [
        "convert",
        str(state),
        str(out),
        "--from-cpu",
        "sapphire-rapids",
        "--to-cpu",
        "haswell",
        "--json",
    ]
    assert main(arguments) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["written"]) == ("fpstate-convert/1", False)
    assert record["losses"][1] == {
        "component": "PKRU",
        "reason": "the target has no place for it",
        "registers": [{"name": "pkru", "value": "0x5554", "becomes": "0x0"}],
    }
    assert Layout.from_dict(record["layout"]) == Layout.standard(Cpu.catalog("haswell"))
    assert main([*arguments, "-d", "pkru", "-d", "zmm17", "--no-values"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["written"]
    assert record["losses"][0]["registers"] == [{"name": "zmm17", "value": None, "becomes": None}]


@pytest.mark.parametrize("name", ["fxsave", "fsave"])
def test_the_formats_before_xsave(name: str, tmp_path: Path) -> None:
    image = build_image(ZEN4, {"st0": 3 << 62, "fip": 0x1234})
    source, out, back = (tmp_path / file for file in ("in.bin", "out.bin", "back.bin"))
    source.write_bytes(image.to_bytes())
    assert main(["convert", str(source), str(out), "--from-cpu", "zen4", "--to-format", name]) == 0
    data = out.read_bytes()
    assert (from_fxsave if name == "fxsave" else from_fsave)(data) == image
    assert main(["convert", str(out), str(back), "--to-cpu", "zen4", "--to-format", "compacted"]) == 0
    assert Image(back.read_bytes(), Layout.compacted(Cpu.catalog("zen4"))) == image


def test_supervisor_components_stay_in_the_compacted_format(tmp_path: Path) -> None:
    image = build_image(build_layout("tiger-lake", Format.COMPACTED), {"pl3_ssp": 0x7FFF0000, "ymm0h": 9})
    source, out = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(image.to_bytes())
    arguments = ["convert", str(source), str(out), "--from-cpu", "tiger-lake", "--to-cpu", "sapphire-rapids"]
    assert main(arguments) == 1
    assert main([*arguments, "--to-format", "compacted"]) == 0
    header = int.from_bytes(out.read_bytes()[520:528], "little")
    layout = Layout.compacted(Cpu.catalog("sapphire-rapids"), header & ~(1 << 63))
    assert Image(out.read_bytes(), layout) == image


def test_a_narrower_mask(tmp_path: Path) -> None:
    source, out = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(build_image(ZEN4, {"ymm0h": 9}).to_bytes())
    assert main(["convert", str(source), str(out), "--cpu", "zen4", "--to-mask", "0x7"]) == 0
    assert len(out.read_bytes()) == 832


def test_bits_of_mxcsr_that_intel_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(build_image(ZEN4, {"mxcsr": 0x21F80}).to_bytes())
    arguments = ["convert", str(source), str(out), "--from-cpu", "zen4", "--to-cpu", "ice-lake-sp"]
    assert main(arguments) == 1
    assert "mxcsr = 0x21f80, becomes 0x1f80" in capsys.readouterr().err
    assert main([*arguments, "--drop", "mxcsr"]) == 0
    assert out.read_bytes()[24:32] == bytes.fromhex("801f0000ffff0000")


@contextmanager
def piped(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard input is a pipe with these bytes, which it has room for."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(data)
    with os.fdopen(reading, "rb") as pipe:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        yield


def test_what_says_itself_what_it_is_comes_through_a_pipe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "state.fpvso"
    write_state(saved, SavedState(GuestState.initial(Cpu.catalog("zen4"))))
    with piped(saved.read_bytes(), monkeypatch):
        assert main(["diff", "-", str(saved)]) == 0
    assert capsys.readouterr().err == "no register differs\n"


def test_pipes(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with piped(state.read_bytes(), monkeypatch):
        assert main(["convert", "-", "-", "--from-cpu", "sapphire-rapids", "--to-cpu", "zen4", "--json"]) == 0
    captured = capsysbinary.readouterr()
    assert Image(captured.out, ZEN4).registers["zmm17"] == 17
    assert json.loads(captured.err)["written"]


def test_an_unknown_layout_is_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.bin", tmp_path / "out.bin"
    source.write_bytes(random_image(ZEN4, 1).to_bytes())
    assert main(["convert", str(source), str(out), "--from-cpu", "sapphire-rapids"]) == 2
    assert "no set of components has 2440 bytes on sapphire-rapids" in capsys.readouterr().err
    source.write_bytes(to_fsave(random_image(ZEN4, 1)))
    assert main(["convert", str(source), str(out)]) == 2
    assert "--to-cpu" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 100, 511, 575])
def test_bytes_that_are_no_state(length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(bytes(length))
    assert main(["convert", str(source), "-", "--cpu", "zen4"]) == 2
    assert f"{length} bytes are no state" in capsys.readouterr().err


def test_a_compacted_state_that_is_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(build_image(build_layout("zen4", Format.COMPACTED)).to_bytes()[:-1])
    assert main(["convert", str(source), "-", "--cpu", "zen4"]) == 2
    assert "compacted needs" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--drop", "pkrw"], ["--cpu", "pentium"], ["--from-cpu", "486"]])
def test_names_that_do_not_exist(
    arguments: list[str], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["convert", str(state), "-", "--to-cpu", "zen4", "--from-cpu", "sapphire-rapids"]
    base = base if "--drop" in arguments else base[:3]
    assert main([*base, *arguments]) == 2
    assert capsys.readouterr().err


def test_a_missing_file_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "/nonexistent", "-", "--cpu", "zen4"]) == 2
    assert "/nonexistent" in capsys.readouterr().err


def test_more_than_a_state_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(bytes((1 << 20) + 1))
    assert main(["convert", str(source), "-", "--cpu", "zen4"]) == 2
