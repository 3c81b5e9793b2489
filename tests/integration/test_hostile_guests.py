"""The way back from a guest needs nothing that the guest can change: every row of the table ends as its guest's end.

Each run is a process of its own with a bound: what is tested is that it neither ends nor goes on for ever.
FPSTATE_HOSTILE names a folder with the program and the shim, for machines without a compiler.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_runs import check, run_all
from hostile_guests import ENDING_THE_PROCESS, KVM, NATIVE, ROWS, build

from fpstate.engine.kvm.engine import missing as missing_for_kvm
from fpstate.errors import UnsupportedHere
from fpstate.program import BUILTIN
from fpstate.vso.vcpu import ExitKind

SECONDS = 240
"""A bound for a machine that is busy; a run takes some seconds."""
ENDLESS = 99
SINGLE = {row.name: row.number for row in ROWS}
FOLDER = Path(__file__).parent
NATIVE_WAYS = {
    "portable": {"FPSTATE_CORE": "portable"},
    "fast": {"FPSTATE_CORE": "fast"},
    "standard": {"FPSTATE_STANDARD": "1"},
}


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, request) -> Callable[[str], Path]:
    """hostile(name) -> the program of an engine, or the shim that undoes a part of the way back."""
    folder = Path(os.environ.get("FPSTATE_HOSTILE") or tmp_path_factory.mktemp("hostile"))

    def make(name: str) -> Path:
        path = folder / name
        if path.exists():
            return path
        gcc = request.getfixturevalue("gcc")
        if name.endswith(".so"):
            source = FOLDER / "undo_way_back.c"
            subprocess.run([gcc, "-O1", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
        else:
            path.write_bytes(build(path.stem, gcc))
        return path

    return make


def run(
    program: Path, *rows: str, count: int = 0, processors: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run rows, or all that can be, in a process of their own."""
    numbers = (str(SINGLE[row]) for row in rows)
    return subprocess.run(
        [
            sys.executable,
            FOLDER / "hostile_child.py",
            program,
            program.stem,
            str(count),
            str(processors),
            *numbers,
        ],
        env={**os.environ, **environment},
        timeout=SECONDS,
        check=False,
        capture_output=True,
        text=True,
    )


def outcome(program: Path, *rows: str, **options: Any) -> dict[str, Any]:
    """Run rows and return the report, once nothing in it but the ends is open."""
    ended = run(program, *rows, **options)
    assert (ended.returncode, ended.stderr) == (0, "")
    report: dict[str, Any] = json.loads(ended.stdout)
    assert {name: report[name] for name in ("wrong", "held", "leaks", "damaged")} == {
        "wrong": [],
        "held": 0,
        "leaks": [],
        "damaged": [],
    }
    assert report["canaries"] >= 1
    return report


def other_ends(report: dict[str, Any], engine: str) -> dict[str, list[str]]:
    """The rows that ended otherwise than the table says."""
    expected = {row.number: row.ends.get(engine, "").split(" or ") for row in ROWS}
    return {
        ROWS[int(number)].name: ends
        for number, ends in report["ends"].items()
        if not set(ends) <= set(expected[int(number)])
    }


@pytest.fixture(params=[*NATIVE_WAYS, KVM])
def subject(request, native, hostile) -> tuple[Path, dict[str, str]]:
    """A program and the environment in which it runs: the native engine in each way to save a state, and KVM."""
    if request.param == KVM:
        if lacking := missing_for_kvm():
            pytest.skip(lacking)
        return hostile(f"{KVM}.bin"), {}
    found = native.features()
    if request.param != "standard" and not (found["xsavec"] and found["xgetbv1"]):
        pytest.skip("XSAVEC with XGETBV(1) (CPUID.(0DH,1):EAX[1] and [2])")
    if request.param == "fast":
        native.core_choice()
        try:
            native.core_use(native.core_use("fast"))
        except UnsupportedHere as error:
            pytest.skip(str(error))
    return hostile(f"{NATIVE}.bin"), NATIVE_WAYS[request.param]


def test_every_guest_of_the_table_ends_as_its_own_end(built, subject):
    program, environment = subject
    report = outcome(program, **environment)
    assert other_ends(report, program.stem) == {}
    assert report["guests"] > 100


def test_a_thousand_of_them_in_turn_on_two_processors(native, built, hostile):
    program = hostile(f"{NATIVE}.bin")
    report = outcome(program, count=1000, processors=2)
    assert other_ends(report, NATIVE) == {}
    assert (report["guests"], report["canaries"]) == (1000, 250)


@pytest.mark.parametrize("way", ["tick", "fault", "port"])
def test_where_the_code_segment_is_left_as_it_was_no_run_ends(native, built, hostile, way):
    """The control: without it the guest of that row keeps its thread for ever."""
    undo = {"LD_PRELOAD": str(hostile("undo.so")), "FPSTATE_UNDO": "cs"}
    assert run(hostile(f"{NATIVE}.bin"), f"32-bit code, {way}", **undo).returncode == ENDLESS
    outcome(hostile(f"{NATIVE}.bin"), f"32-bit code, {way}", **{**undo, "FPSTATE_UNDO": "nothing"})


@pytest.mark.parametrize("deed", ENDING_THE_PROCESS, ids=lambda deed: deed.name)
def test_system_calls_do_to_the_process_what_they_do(native, built, hostile, deed):
    """Trusted code: natively exit is the process's own, and a copy by fork may end for itself."""
    ended = run(hostile(f"{NATIVE}.bin"), deed.name)
    if deed.name == "fork":
        assert (ended.returncode, json.loads(ended.stdout)["ends"]) == (
            0,
            {str(SINGLE["fork"]): [ExitKind.FINISHED.value]},
        )
    else:
        assert (ended.returncode, ended.stdout) == (7, "")


# Protection keys


@pytest.fixture
def keys(native) -> None:
    """Protection keys, and a kernel that delivers signals to a thread that closed its own."""
    if not native.features()["pkru"]:
        pytest.skip("protection keys (CPUID.(07H,0):ECX[4], OSPKE)")
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("Linux 6.12, which opens every key before it writes a signal frame")


CLOSED = "pkru: all closed, tick"


def test_every_guest_that_changes_its_keys_ends_as_its_own_end(keys, built, hostile):
    """They are in the table too: here alone, for the emulated machine that has keys and little time."""
    program = hostile(f"{NATIVE}.bin")
    chosen = [row.name for row in ROWS if row.needs == "pkru"]
    report = outcome(program, *chosen)
    assert other_ends(report, NATIVE) == {}
    assert report["guests"] == len(chosen)


def test_without_the_frame_s_pkru_the_process_is_lost(keys, built, hostile):
    undo = {"LD_PRELOAD": str(hostile("undo.so")), "FPSTATE_UNDO": "pkru"}
    assert run(hostile(f"{NATIVE}.bin"), CLOSED, **undo).returncode == -signal.SIGSEGV


def test_with_restartable_sequences_a_closed_key_is_not_the_guest_s_alone(keys, built, hostile):
    """The kernel touches the thread's area with the guest's rights, and tells what it meets as a SIGSEGV."""
    undo = {"LD_PRELOAD": str(hostile("undo.so")), "FPSTATE_UNDO": "rseq"}
    ended = run(hostile(f"{NATIVE}.bin"), CLOSED, **undo)
    assert ended.returncode or other_ends(json.loads(ended.stdout), NATIVE)


# Selectors

READ_SELECTOR = {"cs": 0xC88C, "ss": 0xD08C, "ds": 0xD88C, "es": 0xC08C, "fs": 0xE08C, "gs": 0xE88C}
"""MOV EAX, Sreg."""


def selectors() -> dict[str, int]:
    """The thread's selectors."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
        at = ctypes.addressof(held := ctypes.c_char.from_buffer(page))
        found = {}
        for name, code in READ_SELECTOR.items():
            page[:3] = code.to_bytes(2, "little") + b"\xc3"
            found[name] = ctypes.CFUNCTYPE(ctypes.c_int)(at)()
        del held
    return found


LOADS = "mov eax, ss; mov ds, eax; mov es, eax; mov fs, eax;"


@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        ("mov eax, 0; call gs:[0]", ExitKind.FINISHED),
        ("mov eax, gs; mov gs, eax; mov eax, 0; out 0xF5, eax", ExitKind.FINISHED),
        ("mov eax, ss; mov gs, eax; ud2", ExitKind.FAULT),
        ("mov eax, ss; mov gs, eax; 1: jmp 1b", ExitKind.EXPIRED),
    ],
    ids=["call", "port", "fault", "tick"],
)
def test_selectors_of_a_guest_are_gone_afterwards(engine, assemble, leave, kind):
    before = selectors()
    vcpu = engine.vcpu(assemble(LOADS + leave))
    vcpu.core.cycle_limit = min(vcpu.core.cycle_limit, 10_000_000)
    run_all(engine, [vcpu])
    assert vcpu.exit.kind is kind
    assert selectors() == before


def test_the_next_guest_does_not_see_them(engine, assemble):
    sees = assemble(
        "mov eax, ds; mov ecx, es; or eax, ecx; mov ecx, fs; or eax, ecx; mov ecx, gs; or eax, ecx;"
        "jz 1f; mov eax, 256; 1: call gs:[0]"
    )
    loads = assemble(LOADS + "mov eax, 1; call gs:[0]; mov eax, 0; call gs:[0]")
    vcpus = [engine.vcpu(program) for program in (loads, sees, loads, sees)]
    run_all(engine, vcpus)
    assert [vcpu.exit.kind for vcpu in vcpus] == [ExitKind.FINISHED] * 4
    canary = engine.vcpu(BUILTIN["canary"].load(), seed=1, argument=1000)
    run_all(engine, [canary])
    assert check(canary, 1, 1000) is None
