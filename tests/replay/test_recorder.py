"""tools/record_oracles.py where the tests run: what it records is whole, and rules and model foretell it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from every_replay import disagreements, falsified

from fpstate.arch import Cpu
from fpstate.engine.kvm.device import Device
from fpstate.errors import UnsupportedHere
from recorded import INTEL, Case, Oracles

TOOL = Path(__file__).parents[2] / "tools" / "record_oracles.py"
CASES = ("sequences=300", "xrstor=400", "sigreturn=300", "ptrace=200", "fpregs=200", "kvm=240")
ALWAYS = {"sequences", "sequences-x87", "xrstor", "sigreturn64"}
"""Files that every machine has, by the beginnings of their names."""
WITH_KVM = {"kvm", "kvm-nocpuid"}

Record = Callable[..., tuple[Oracles, str]]


@pytest.fixture(scope="module")
def record(core: ModuleType, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Record:
    def run(*options: str) -> tuple[Oracles, str]:
        folder = tmp_path_factory.mktemp("recorded") / "oracles"
        command = [sys.executable, str(TOOL), "--out", str(folder), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return Oracles(folder), done.stdout

    return run


@pytest.fixture(scope="module")
def recorded(record: Record) -> tuple[Oracles, str]:
    return record("--cases", *CASES, "--seed", "5")


@pytest.fixture(scope="module")
def oracles(recorded: tuple[Oracles, str]) -> Oracles:
    return recorded[0]


def test_every_file_is_there_or_what_it_needs_is_named(recorded):
    oracles, told = recorded
    wanted = {*ALWAYS, *WITH_KVM, "sigreturn32", "ptrace64", "ptrace32", "fpregs64", "fpregs32"}
    there = {name.split("-amx")[0].split("-noamx")[0] for name in oracles.names()}
    for name in wanted - there:
        assert name not in ALWAYS
        assert re.search(rf"^{name} +left out; missing: \S", told, re.MULTILINE)
    assert not oracles.altered()
    if _has_kvm():
        assert there > WITH_KVM


def test_the_machine_is_this_one(oracles, core):
    here, told = Cpu.host(), oracles.cpu
    for field in (
        "vendor",
        "family",
        "model",
        "stepping",
        "xcr0",
        "xss",
        "features",
        "enabled_xcr0",
        "mxcsr_mask",
    ):
        assert getattr(told, field) == getattr(here, field)
    assert dict(told.geometry) == dict(here.geometry)


def test_what_was_recorded_is_foretold(oracles):
    found = {name: disagreements(oracles, oracles.read(name)) for name in oracles.names()}
    assert not {name: some[:3] for name, some in found.items() if some}


def test_a_single_wrong_answer_is_noticed(oracles):
    for name in oracles.names():
        assert disagreements(oracles, falsified(oracles.read(name))), name


def replay(folder: Path) -> subprocess.CompletedProcess[str]:
    tool = TOOL.with_name("replay_oracles.py")
    return subprocess.run(
        [sys.executable, str(tool), str(folder)], capture_output=True, text=True, timeout=240
    )


def test_a_folder_is_replayed_by_a_command_that_notices_a_wrong_answer(record):
    oracles, _ = record("xrstor", "--cases", "xrstor=40")
    name = oracles.names()[-1]
    done = replay(oracles.folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [rf"{each} +40 cases, 0 disagreements\n" for each in oracles.names()]
    assert re.fullmatch("".join(lines), done.stdout)
    wrong = falsified(oracles.read(name))
    oracles.write(name, wrong.header, wrong.cases)
    oracles.seal()
    done = replay(oracles.folder)
    assert done.returncode == 1
    assert f"{name} case 0: MXCSR" in done.stdout


def test_a_changed_file_is_noticed(record):
    oracles, _ = record("xrstor", "--cases", "xrstor=10")
    path = oracles.folder / "pool.bin.xz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert oracles.altered() == ["pool.bin.xz"]
    done = replay(oracles.folder)
    assert done.returncode == 2
    assert "pool.bin.xz" in done.stderr


def test_the_form_is_that_of_the_intel_recording(oracles):
    """No key of header, case or answer that the other folder's README does not know."""
    known: dict[str, set[str]] = {}
    for name in INTEL.names():
        file = INTEL.read(name)
        known.setdefault(file.kind, set()).update(_keys([file.header, *file.cases]))
    known["sequences"] |= {"selectors"}
    for kind in known:
        known[kind] |= {"varies", "odd", "k"}
    for name in oracles.names():
        file = oracles.read(name)
        assert not _keys([file.header, *file.cases]) - known[file.kind], name


def test_equal_seeds_ask_the_same(record):
    folders = [
        record("xrstor", "sigreturn", "--cases", "xrstor=50", "sigreturn=50", "--seed", "8")[0]
        for _ in range(2)
    ]
    asked = [[_questions(oracles, name) for name in oracles.names()] for oracles in folders]
    assert asked[0] == asked[1]
    other, _ = record("xrstor", "--cases", "xrstor=50", "--seed", "9")
    assert _questions(other, other.names()[0]) not in asked[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["nonsense"], "there is no kind 'nonsense'"),
        (["--cases", "nonsense=3"], "there is no kind 'nonsense'"),
    ],
)
def test_what_cannot_be_recorded_is_told(core, gcc, tmp_path, options, reason):
    command = [sys.executable, str(TOOL), "--out", str(tmp_path / "new"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert reason in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_left_alone(core, gcc, tmp_path):
    (tmp_path / "mine").write_text("mine")
    command = [sys.executable, str(TOOL), "--out", str(tmp_path), "xrstor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_saves_that_show_every_byte_have_the_digest_that_they_state(oracles):
    """Without any model: patches, edits and copies put together are the area of which the digest is."""
    for name in oracles.names("sequences"):
        file = oracles.read(name)
        templates, checked = file.templates(), 0
        for case in file.cases:
            areas = [bytearray(templates[number]) for number in case["t"]]
            for operation, answer in zip(case["o"], case["r"], strict=True):
                if operation[0] == "edit":
                    data = bytes.fromhex(operation[3])
                    areas[operation[1]][operation[2] : operation[2] + len(data)] = data
                elif operation[0] == "copy":
                    _, number, offset, start, length = operation
                    areas[number][offset : offset + length] = file.pool[start : start + length]
                saved = (answer or {}).get("s", {})
                if "d" in saved:
                    area = areas[operation[2] if operation[0] == "tilestored" else operation[1]]
                    for offset, text in saved["d"]:
                        data = bytes.fromhex(text)
                        area[offset : offset + len(data)] = data
                    assert zlib.crc32(area) == saved["a"]
                    checked += 1
                elif "a" in saved:
                    break  # bytes that are not told
        assert checked > 50


def _has_kvm() -> bool:
    try:
        Device().close()
    except UnsupportedHere:
        return False
    return True


def _keys(values: Iterable[Any]) -> set[str]:
    found: set[str] = set()
    for value in values:
        if isinstance(value, dict):
            found |= {key for key in value if not key.isdigit()} | _keys(value.values())
        elif isinstance(value, list):
            found |= _keys(value)
    return found


def _questions(oracles: Oracles, name: str) -> str:
    file = oracles.read(name)
    cases: list[Case] = [{key: value for key, value in case.items() if key != "r"} for case in file.cases]
    return json.dumps([file.header, cases])
