"""Tiles on a processor that has them: many contexts under preemption, the audit, its twins, and who is denied.

Each in a process of its own: Linux takes permission for tiles never back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.command.component_request import lacking
from fpstate.engine.kvm.engine import missing as missing_for_kvm
from fpstate.errors import UnsupportedHere
from fpstate.vso.config import FpuConfig

HERE = Path(__file__).parent
TILEDATA = mask_of(Component.TILEDATA)


@pytest.fixture(scope="module")
def tiles(native) -> None:
    """Tiles, which the kernel gives on request."""
    cpu = Cpu.host()
    if not FpuConfig.from_cpu(cpu).user_max.features & TILEDATA:
        pytest.skip(lacking(cpu, Component.TILEDATA))


@pytest.fixture(params=["portable", "fast"])
def switch(native, request) -> str:
    """The core that switches, by name."""
    native.core_choice()
    try:
        native.core_use(native.core_use(request.param))
    except UnsupportedHere as error:
        pytest.skip(str(error))
    return request.param


def run(*arguments: str, core: str = "") -> tuple[int, dict]:
    """Run the command; returns exit code and report."""
    done = subprocess.run(
        [sys.executable, "-m", "fpstate", "run", "--json", *arguments],
        env=os.environ | ({"FPSTATE_CORE": core} if core else {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def audited(twin: str, core: str) -> dict:
    """Audit an engine with tiles, as a whole or broken in one place."""
    done = subprocess.run(
        [sys.executable, HERE / "tile_audit.py", twin, core],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout)


# Many contexts


@pytest.mark.soak
@pytest.mark.parametrize(("quantum", "argument"), [("20us", "100"), ("100us", "2000")])
@pytest.mark.parametrize("processors", ["1", "2"])
def test_a_thousand_contexts_keep_their_tiles(tiles, switch, quantum, argument, processors):
    if int(processors) > len(os.sched_getaffinity(0)):
        pytest.skip(f"{processors} processors")
    options = ("--request", "tiledata", "--vcpus", "1000", "--processors", processors, "--quantum", quantum)
    code, report = run(
        *options, "--argument", argument, "--timeout", "60s", "amx_matmul", "canary", core=switch
    )
    assert (code, report["ends"], report["problems"]) == (0, {"finished": 1000}, [])
    assert (report["checked"], report["wrong"], report["leaked_bytes"]) == (1000, 0, 0)
    assert report["audit"]["damaged"] == []
    assert report["preemptions"] > 1000
    assert report["state_bytes_end"] == 0
    assert "TILEDATA" in report["components"]


def test_the_default_mix_has_the_product_of_tiles_where_they_were_requested(tiles):
    code, report = run("--no-audit", "--request", "tiledata", "--vcpus", "60")
    assert (code, report["wrong"], report["finished"]) == (0, 0, 60)
    assert "amx_matmul" not in report["left_out"]
    assert "TILEDATA" in report["components"]


def test_the_default_mix_leaves_it_out_where_they_were_not(tiles):
    code, report = run("--no-audit", "--vcpus", "60")
    assert (code, report["wrong"], report["finished"]) == (0, 0, 60)
    assert report["left_out"]["amx_matmul"] == "needs TILEDATA (--request tiledata)"
    assert "TILEDATA" not in report["components"]


# The audit


def test_nothing_leaks_with_tiles(tiles, switch):
    found = audited("whole", switch)
    assert found["offered"] & TILEDATA
    assert (found["places"], found["damaged"]) == ([], [])
    assert found["searched"] > 8 * 8192


@pytest.mark.parametrize(
    ("twin", "register", "component"),
    [("configuration", "tilecfg", "TILECFG"), ("tiles", "tmm", "TILEDATA"), ("both", "tilecfg", "TILECFG")],
)
def test_tiles_that_a_switch_leaves_behind_are_caught(tiles, switch, twin, register, component):
    """By a probe's registers; and contexts that may not have them are denied what they never used."""
    found = audited(twin, switch)
    places = [place for place in found["places"] if place.startswith(register)]
    denied = [problem for problem in found["damaged"] if f"denied: {component}" in problem]
    assert places or denied
    assert all(place.endswith("of a fresh context") for place in places)


@pytest.mark.parametrize(("twin", "tile"), [("rows", "tmm"), ("last row", "tmm7 row 15")])
def test_rows_that_are_cut_short_are_caught_by_name(tiles, switch, twin, tile):
    found = audited(twin, switch)
    assert any(f"mismatches, the first in {tile}" in problem for problem in found["damaged"])


def test_tiles_in_unscrubbed_memory_are_caught(tiles, switch):
    assert "free pool memory" in audited("unscrubbed", switch)["places"]


# Denial


def test_whoever_uses_tiles_without_permission_is_denied_and_the_others_finish(tiles, switch):
    code, report = run("--no-audit", "--vcpus", "40", "amx_matmul", "canary", core=switch)
    assert code == 1
    assert (report["ends"], report["wrong"]) == ({"denied": 20, "finished": 20}, 0)
    (problem,) = report["problems"]
    assert problem.startswith("vCPU 0 and 19 more: amx_matmul: denied: ")
    assert "TILEDATA" in problem
    assert report["state_bytes_end"] == 0


def test_a_kvm_guest_without_permission_is_denied_too(tiles):
    if absent := missing_for_kvm():
        pytest.skip(absent)
    for each in ((), ("--kvm-vcpus", "each")):
        options = ("--engine", "kvm", *each, "--no-audit", "--vcpus", "40")
        code, report = run(*options, "amx_matmul", "canary")
        assert code == 1
        assert (report["ends"], report["wrong"]) == ({"denied": 20, "finished": 20}, 0)
        (problem,) = report["problems"]
        assert problem.startswith("vCPU 0 and 19 more: amx_matmul: denied: ")
        assert "TILEDATA" in problem
        assert not {"TILECFG", "TILEDATA"} & set(report["components"])


def test_tiles_in_kvm_guests_are_right_or_said_to_be_missing(tiles):
    if absent := missing_for_kvm():
        pytest.skip(absent)
    code, report = run("--engine", "kvm", "--request", "tiledata", "--vcpus", "100", "amx_matmul", "canary")
    if code == 3:
        assert "TILEDATA in guests of this KVM" in report["error"]
        return
    assert (code, report["ends"], report["wrong"]) == (0, {"finished": 100}, 0)
    assert (report["leaked_bytes"], report["audit"]["damaged"]) == (0, [])
    assert "TILEDATA" in report["components"]


# What is refused


def test_a_signal_stack_that_is_too_small_is_said_so(tiles):
    """Of any thread of the process; the kernel counts them all."""
    script = (
        "import ctypes, sys\n"
        "from fpstate.command.main import main\n"
        "class Stack(ctypes.Structure):\n"
        "    _fields_ = [('sp', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]\n"
        "memory = ctypes.create_string_buffer(8192)\n"
        "stack = Stack(ctypes.addressof(memory), 0, 8192)\n"
        "assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0\n"
        "sys.exit(main(['run', '--request', 'tiledata', '--vcpus', '2', 'amx_matmul']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "ENOSPC" in done.stderr
    assert "AT_MINSIGSTKSZ" in done.stderr
