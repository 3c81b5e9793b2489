"""Regsets and signal frames that Linux took on an Intel processor, foretold by the kernel model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import kernel_replay
import pytest

from fpstate.arch import Component
from fpstate.engine.model import ptrace, restore, signals
from recorded import INTEL, OracleFile

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

CASES = {
    "ptrace64-amx": 6_000,
    "ptrace64-noamx": 5_000,
    "ptrace64-unused": 2_000,
    "ptrace32": 4_000,
    "sigreturn64-amx": 7_000,
    "sigreturn64-noamx": 6_000,
}


@cache
def recording(name: str) -> OracleFile:
    return INTEL.read(name)


def test_every_recording_that_the_kernel_model_knows_is_replayed():
    assert {*CASES} == {*INTEL.names("ptrace"), *INTEL.names("sigreturn64")}


@pytest.mark.parametrize("name", CASES)
def test_linux_in_software_foretells_every_case(name):
    report = kernel_replay.check_file(recording(name), INTEL.machine)
    assert not report.disagreements, report.told
    assert report.cases + report.skipped == CASES[name]
    assert report.skipped == sum(1 for case in recording(name).cases if case.get("varies"))


def _pkru_of_a_frame_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "INIT_PKRU", 0)


def _a_refused_frame_leaves_the_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    right, delivering = signals._clear_user_states, signals.deliver_signal

    def deliver_signal(kernel, core):
        with monkeypatch.context() as patched:
            patched.setattr(signals, "_clear_user_states", right)
            return delivering(kernel, core)

    monkeypatch.setattr(signals, "_clear_user_states", lambda kernel, core: None)
    monkeypatch.setattr(kernel_replay, "deliver_signal", deliver_signal)


def _an_illegal_configuration_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = {component: take for component, take in restore.LOADED.items() if component != Component.TILECFG}
    monkeypatch.setattr(restore, "LOADED", loaded)


def _permission_alone_brings_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_replay, "_GRANTED_AND_USED", 2)


def _the_registers_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written reads back as the task will have it."""
    right = ptrace.get_regset

    def get_regset(kernel, task):
        written, task.written = task.written, None
        try:
            return right(kernel, task)
        finally:
            task.written = written

    monkeypatch.setattr(kernel_replay, "get_regset", get_regset)


SABOTAGES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "without a frame PKRU is 0": ("sigreturn64-noamx", _pkru_of_a_frame_that_is_missing),
    "a refused frame leaves the registers": ("sigreturn64-amx", _a_refused_frame_leaves_the_registers),
    "an illegal TILECFG of a frame is loaded": ("sigreturn64-amx", _an_illegal_configuration_is_loaded),
    "an illegal TILECFG of a regset is loaded": ("ptrace64-amx", _an_illegal_configuration_is_loaded),
    "permission alone brings tiles": ("ptrace64-unused", _permission_alone_brings_tiles),
    "the registers are read back": ("ptrace64-noamx", _the_registers_are_read_back),
}


@pytest.mark.parametrize("wrong", SABOTAGES)
def test_a_wrong_kernel_is_caught(monkeypatch, wrong):
    name, change = SABOTAGES[wrong]
    change(monkeypatch)
    assert kernel_replay.check_file(recording(name), INTEL.machine, most=3).disagreements == 3
