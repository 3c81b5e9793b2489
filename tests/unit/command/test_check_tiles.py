"""``fpstate check`` knows from a thread's state, or from a signal frame, whether the thread had used tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fpstate.command.main import main
from fpstate.source.tile_use import of_bytes, of_thread
from recorded import OWN

Capture = pytest.CaptureFixture[str]
INTEL = OWN / "generated_intel"
FRAMES = INTEL / "sigframe"
USED = {"x64_sig_amx", "x64_sig_amxsmall", "x64_sig_released"}
CPU = ("--cpu", "emerald-rapids")


def report(capsys: Capture, path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    code = main(["check", str(path), "--json", *CPU, *arguments])
    return code, json.loads(capsys.readouterr().out)["images"]


@pytest.mark.parametrize("path", sorted(FRAMES.glob("x64_*.fpstate.bin")), ids=lambda path: path.name)
def test_a_frame_is_judged_for_the_thread_that_it_was_made_for(path: Path, capsys: Capture) -> None:
    """Without that, frames of threads with tiles are larger than the task's own: all but x87 and SSE would be lost."""
    code, (image,) = report(capsys, path, "--for", "sigreturn", "--strict")
    used = path.name.split(".")[0] in USED
    assert (code, image["verdicts"][0]["verdict"]) == (0, "loaded")
    assert not image["verdicts"][0]["fx_only"]
    assert image["user_xfeatures"] == ("0x602e7" if used else "0x202e7")
    assert (image["tiledata"]["used"], image["tiledata"]["known"]) == (used, True)


@pytest.mark.parametrize("name", sorted(USED))
def test_the_option_overrules_what_the_frame_shows(name: str, capsys: Capture) -> None:
    """The control: for a task that has not used tiles such a frame loses them."""
    code, (image,) = report(
        capsys, FRAMES / f"{name}.fpstate.bin", "--for", "sigreturn", "--strict", "--no-amx"
    )
    assert (code, image["verdicts"][0]["fx_only"], image["tiledata"]) == (1, True, None)


def test_each_thread_of_a_core_is_judged_by_its_own_state(capsys: Capture) -> None:
    path = INTEL / "cores/x64_amxmixed_6t_quit.kernel.core.xz"
    code, images = report(capsys, path, "--for", "xrstor")
    assert code == 0
    used = [image["tiledata"]["used"] for image in images]
    assert sorted(used) == [False] * 4 + [True] * 2  # in use, and in use with zeros
    assert [image["tiledata"]["known"] for image in images] == used
    assert [image["user_xfeatures"] == "0x602e7" for image in images] == used
    code, images = report(capsys, path, "--for", "xrstor", "--no-amx")
    assert code == 1
    assert [image["verdicts"][0]["answer"] for image in images].count("#NM") == 2


def test_what_does_not_show_is_said(capsys: Capture) -> None:
    path = INTEL / "cores/x64_permunused_1t_quit.kernel.core.xz"
    main(["check", str(path), "--for", "ptrace", *CPU])
    out = capsys.readouterr().out
    assert "TILEDATA: not in use; whether its process has the permission does not show" in out
    assert "--amx: it is" in out
    main(["check", str(path), "--for", "ptrace", *CPU, "--amx"])
    assert "does not show" not in capsys.readouterr().out
    main(["check", str(path), "--for", "ptrace", "--cpu", "ice-lake-sp"])
    assert "TILEDATA" not in capsys.readouterr().out.split("\n")[1]


def test_a_thread_with_tiles_has_not_asked_for_its_guests(capsys: Capture) -> None:
    path = INTEL / "cores/x64_amx_2t_quit.kernel.core.xz"
    _, (first, _) = report(capsys, path, "--for", "kvm")
    assert (first["tiledata"]["used"], first["verdicts"][0]["answer"]) == (True, "EINVAL")
    _, (first, _) = report(capsys, path, "--for", "kvm", "--amx")
    assert first["verdicts"][0]["accepted"]


def test_a_bare_image_is_nobodys(capsys: Capture) -> None:
    path = INTEL / "raw/00_xsave64_t0_m3647_rfbm602e7.bin"
    code, (image,) = report(capsys, path, "--for", "xrstor")
    assert (code, image["verdicts"][0]["answer"], image["tiledata"]["known"]) == (1, "#NM", False)
    code, (image,) = report(capsys, INTEL / "raw/08_xsave64_t0_m63_rfbm2e7.bin", "--for", "xrstor")
    assert (code, image["tiledata"]) == (0, None)


def test_frames_of_either_kind_and_frames_that_contradict_themselves() -> None:
    assert of_bytes((FRAMES / "i386_sig_avx512.fpstate.bin").read_bytes()).known
    frame = bytearray((FRAMES / "x64_sig_amx.fpstate.bin").read_bytes())
    assert of_bytes(bytes(112) + frame).components == 1 << 18
    frame[480:484] = (2816).to_bytes(4, "little")
    doubtful = of_bytes(bytes(frame))
    assert (doubtful.components, doubtful.known) == (1 << 18, False)
    assert "no room" in doubtful.reason
    assert of_bytes(b"").reason == ""


def test_tiles_behind_the_end_that_a_frame_states_are_told_of(capsys: Capture, tmp_path: Path) -> None:
    """8192 bytes behind what the frame says of itself are loaded as tiles."""
    frame = bytearray((FRAMES / "x64_sig_amx.fpstate.bin").read_bytes())
    frame[480:484] = (2816).to_bytes(4, "little")
    frame[2816:2820] = frame[11008:11012]
    path = tmp_path / "frame"
    path.write_bytes(frame)
    main(["check", str(path), "--for", "sigreturn", *CPU])
    out = capsys.readouterr().out
    assert "XS033 warning at byte 480: TILEDATA ends at 11008, the frame at 2816" in out
    assert "--no-amx: it is not" in out
    main(["check", str(path), "--for", "sigreturn", *CPU, "--no-amx"])
    out = capsys.readouterr().out
    assert "XS033" not in out
    assert "loaded with loss of TILEDATA" in out


def test_a_thread_shows_its_permission_by_use_alone() -> None:
    assert (of_thread(0x602E7).components, of_thread(0x602E7).known) == (1 << 18, True)
    assert (of_thread(0x202E7).components, of_thread(0x202E7).known) == (0, False)


def test_what_reads_back_is_told_apart_from_what_is_loaded(capsys: Capture, tmp_path: Path) -> None:
    """TILECFG that is illegal, and an MXCSR that AVX alone states: Linux gives back what the registers never had."""
    regset = bytearray((INTEL / "ptrace/x64_amx_2t.t0.xstate.bin").read_bytes())
    regset[2752] = 2
    regset[24:28] = (0x1F81).to_bytes(4, "little")
    regset[512:520] = (0x60204).to_bytes(8, "little")
    path = tmp_path / "regset"
    path.write_bytes(regset)
    _, (image,) = report(capsys, path, "--for", "ptrace", "--amx")
    (verdict,) = image["verdicts"]
    assert set(verdict["reported"]) - set(verdict["loaded"]) == {"TILECFG"}
    assert (verdict["mxcsr"], verdict["reported_mxcsr"], verdict["mxcsr_lost"]) == ("0x1f80", "0x1f81", True)
    _, (image,) = report(capsys, path, "--for", "xrstor", "--amx")
    (verdict,) = image["verdicts"]
    assert (verdict["mxcsr"], verdict["reported_mxcsr"], verdict["reported"]) == ("0x1f81", None, [])
