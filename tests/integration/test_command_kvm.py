"""``fpstate kvm``: what it prints, what it writes, what it refuses, and how it ends where there is no KVM."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.command.main import main
from fpstate.engine.kvm.device import Device
from fpstate.errors import UnsupportedHere
from fpstate.image import Image
from fpstate.source.checkpoint import SavedState
from fpstate.source.guest_state import GuestState
from fpstate.source.state_file import read_state, write_state
from fpstate.testing import random_image


@pytest.fixture(scope="module")
def kvm():
    try:
        Device().close()
    except UnsupportedHere as error:
        pytest.skip(str(error))


@pytest.fixture
def without_kvm(monkeypatch, tmp_path):
    monkeypatch.setattr(Device.__init__, "__defaults__", (str(tmp_path / "kvm"),))
    return tmp_path


@pytest.fixture(scope="module")
def saved(kvm, tmp_path_factory) -> Path:
    """A canary and a spin, stopped in the middle; of several canaries, the one that uses most."""
    folder, many = tmp_path_factory.mktemp("states"), tmp_path_factory.mktemp("many")
    assert main(["kvm", "save", "canary", "spin", "--to", str(folder), "--seed", "3"]) == 0
    assert main(["kvm", "save", "canary", "--to", str(many), "--count", "8"]) == 0
    fullest = max(many.iterdir(), key=lambda path: read_state(path).state.image.in_use)
    fullest.replace(folder / "canary-0000.fpvso")
    return folder


def state_of(cpu: str, mask: int, *, present: int) -> SavedState:
    processor = Cpu.catalog(cpu)
    image = random_image(Layout.standard(processor, mask), 3, present=present)
    return SavedState(GuestState(image, mask, processor))


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["save", "spin", "--to", "x.fpvso"], ["load", "x.fpvso"], ["reset"], ["selftest"]],
    ids=lambda arguments: arguments[0],
)
def test_without_a_usable_kvm_the_exit_code_is_3_and_the_reason_is_told(arguments, without_kvm, capsys):
    (without_kvm / "x.fpvso").write_bytes(b"")
    assert main(["kvm", *arguments]) == 3
    assert "does not exist" in capsys.readouterr().err
    (without_kvm / "kvm").write_bytes(b"")
    assert main(["kvm", *arguments]) == 3
    assert "is not KVM" in capsys.readouterr().err


@pytest.mark.usefixtures("kvm")
def test_info_tells_capabilities_components_permission_and_sizes(capsys):
    assert main(["kvm", "info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "fpstate-kvm-info/1"
    assert report["api_version"] == 12
    assert report["sizes"]["buffer"] >= max(4096, report["sizes"]["image"], report["sizes"]["capability"])
    assert int(report["xcr0"]["guest_cpuid"], 16) & 3 == 3
    assert main(["kvm", "info"]) == 0
    assert "KVM_CAP_XSAVE2" in capsys.readouterr().out


def test_states_are_written_for_their_owner_alone_and_are_whole(saved):
    files = sorted(saved.iterdir())
    assert [path.name for path in files] == ["canary-0000.fpvso", "spin-0001.fpvso"]
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        state = read_state(path)
        state.state.check()
        assert state.checkpoint is not None


def test_one_state_goes_into_one_file(kvm, tmp_path):
    assert main(["kvm", "save", "spin", "--to", str(tmp_path / "one")]) == 0
    assert read_state(tmp_path / "one").checkpoint.program == "spin"


def test_states_are_loaded_and_their_programs_go_on(saved, capsys):
    assert main(["kvm", "load", str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(each["program"], each["result"]) for each in report["files"]] == [
        ("canary", "right"),
        ("spin", "right"),
    ]
    assert all(each["verdict"] == "loaded" and each["error"] is None for each in report["files"])
    actions = {each["name"]: each["action"] for each in report["files"][0]["components"]}
    assert actions["X87"] == actions["SSE"] == "loaded"
    assert main(["kvm", "load", str(saved / "canary-0000.fpvso"), "--no-run"]) == 0
    out = capsys.readouterr().out
    assert "XCR0 0x" in out
    assert "right" not in out


def test_a_damaged_file_is_refused_and_the_others_are_loaded(saved, tmp_path, capsys):
    data = bytearray((saved / "spin-0001.fpvso").read_bytes())
    data[2000] ^= 4
    (tmp_path / "damaged.fpvso").write_bytes(data)
    (tmp_path / "short.fpvso").write_bytes(bytes(data[:3000]))
    (tmp_path / "foreign.fpvso").write_bytes(b"\x7fELF" * 100)
    (tmp_path / "whole.fpvso").write_bytes((saved / "spin-0001.fpvso").read_bytes())
    assert main(["kvm", "load", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    for reason in ("SHA-256", "cut short", "no guest state", "whole.fpvso: loaded; spin: right"):
        assert reason in printed.out
    assert "1 of 4" in printed.err


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_loaded(saved, tmp_path, capsys):
    files = [str(tmp_path / "none"), str(saved / "spin-0001.fpvso")]
    assert main(["kvm", "load", *files]) == 2
    printed = capsys.readouterr()
    assert f"{files[0]}: No such file or directory" in printed.out
    assert "spin-0001.fpvso: loaded; spin: right" in printed.out
    assert "1 of 2" in printed.err
    assert main(["kvm", "load", *files, "--json"]) == 2
    first, second = json.loads(capsys.readouterr().out)["files"]
    assert (first["loaded"], second["loaded"], second["result"]) == (False, True, "right")


def test_what_is_refused_is_told_once_and_with_what_to_try(saved, tmp_path, capsys):
    target = tmp_path / "foreign"
    target.write_bytes(b"\x7fELF" * 100)
    assert main(["kvm", "load", str(target)]) == 2
    out = capsys.readouterr().out
    assert out.count(str(target)) == 1
    assert "  try: " in out
    without_xss = state_of("sapphire-rapids", 0x7, present=0x7)
    compacted = Layout.compacted(without_xss.state.cpu, 0x807)
    state = dataclasses.replace(without_xss.state, image=Image.initial(compacted))
    write_state(target, SavedState(state))
    assert main(["kvm", "load", str(target)]) == 1
    out = capsys.readouterr().out
    assert "GS005" in out
    assert "try: save IA32_XSS" in out


@pytest.mark.usefixtures("kvm")
def test_a_state_that_needs_what_this_guest_lacks_is_refused_by_name(tmp_path, capsys):
    cpu = Cpu.catalog("sapphire-rapids")
    present = cpu.user_mask
    write_state(tmp_path / "amx.fpvso", state_of("sapphire-rapids", present, present=present))
    if Cpu.host().has("AMX_TILE"):
        pytest.skip("this processor has AMX")
    assert main(["kvm", "load", str(tmp_path / "amx.fpvso"), "--json"]) == 1
    (each,) = json.loads(capsys.readouterr().out)["files"]
    assert not each["loaded"]
    assert "TILEDATA" in each["lost"]
    assert each["verdict"].startswith("loaded with loss of ")
    lost = ",".join(name.lower() for name in each["lost"])
    assert main(["kvm", "load", str(tmp_path / "amx.fpvso"), "--allow-loss", lost, "--json"]) == 0
    (each,) = json.loads(capsys.readouterr().out)["files"]
    actions = {item["name"]: item["action"] for item in each["components"]}
    assert actions["TILEDATA"] == "dropped"
    assert actions["X87"] == "loaded"


@pytest.mark.usefixtures("kvm")
def test_initial_components_that_this_guest_lacks_are_stripped_and_told(tmp_path, capsys):
    if Cpu.host().has("AMX_TILE"):
        pytest.skip("this processor has AMX")
    state = state_of("sapphire-rapids", Cpu.catalog("sapphire-rapids").user_mask, present=7)
    write_state(tmp_path / "idle.fpvso", state)
    assert main(["kvm", "load", str(tmp_path / "idle.fpvso")]) == 0
    out = capsys.readouterr().out
    assert "stripped, was initial" in out
    assert "XCR0 0x602e7 becomes" in out


@pytest.mark.usefixtures("kvm")
def test_an_illegal_state_is_refused_with_the_rule(tmp_path, capsys):
    saved = state_of("zen4", 7, present=7)
    flawed = GuestState(saved.state.image, 5, saved.state.cpu)
    write_state(tmp_path / "flawed.fpvso", SavedState(flawed))
    assert main(["kvm", "load", str(tmp_path / "flawed.fpvso")]) == 1
    assert "GS001" in capsys.readouterr().out


@pytest.mark.usefixtures("kvm")
def test_unknown_components_and_empty_folders_are_usage_errors(tmp_path, capsys):
    assert main(["kvm", "load", str(tmp_path)]) == 2
    assert main(["kvm", "load", str(tmp_path), "--allow-loss", "zmm"]) == 2
    assert "no component" in capsys.readouterr().err


def test_reset_reports_both_sides(saved, capsys):
    assert main(["kvm", "reset", str(saved / "canary-0000.fpvso"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["before"]) > 10
    assert report["host"] == report["guest"] == []
    assert main(["kvm", "reset"]) == 0
    assert "as the guest sees it: 0" in capsys.readouterr().out


@pytest.mark.usefixtures("kvm")
def test_selftest_holds_and_would_say_if_it_did_not(capsys, monkeypatch):
    assert main(["kvm", "selftest", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [each["name"] for each in checks] == ["load", "verdict", "reset", "control", "go on", "files"]
    assert all(each["held"] for each in checks)
    monkeypatch.setattr("fpstate.command.kvm_selftest.reset", lambda *arguments, **options: None)
    assert main(["kvm", "selftest"]) == 1
    assert "FAILED  reset: a guest still sees" in capsys.readouterr().out
