"""What processors and kernels answered to this project's recorder is what rules and model foretell, on any machine."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
from every_replay import disagreements, falsified

from fpstate.engine.model import Behaviour
from recorded import AMD, INTEL_NO_PKRU, OracleFile, Oracles

RECORDINGS = {"amd": AMD, "intel without PKRU": INTEL_NO_PKRU}
every_recording = pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS.keys())
every_file = pytest.mark.parametrize(
    ("recording", "name"),
    [
        pytest.param(recording, name, id=f"{told}: {name}")
        for told, recording in RECORDINGS.items()
        for name in recording.names()
    ],
)


@cache
def file(recording: Oracles, name: str) -> OracleFile:
    return recording.read(name)


@every_recording
def test_the_recording_is_whole(recording):
    assert not recording.altered()
    kinds = {file(recording, name).kind for name in recording.names()}
    assert kinds == {"sequences", "xrstor", "sigreturn", "ptrace", "kvm"}


@every_file
def test_every_answer_is_foretold(recording, name):
    assert not disagreements(recording, file(recording, name))


@every_file
def test_nearly_every_case_was_stable(recording, name):
    cases = file(recording, name).cases
    assert sum(1 for case in cases if case.get("varies")) <= len(cases) // 50


@every_file
def test_a_single_wrong_answer_is_noticed(recording, name):
    assert disagreements(recording, falsified(file(recording, name)))


def test_in_use_bits_may_be_more_by_a_switch_of_tasks_and_never_less():
    whole = file(AMD, "ptrace64")
    case = copy.deepcopy(
        next(case for case in whole.cases if case["r"].get("v", [0])[0] == AMD.machine["xcr0"])
    )
    case["r"]["v"][0] &= ~4
    assert disagreements(AMD, replace(whole, cases=[case]))
    other = copy.deepcopy(next(case for case in whole.cases if case["r"].get("v", [7])[0] & 7 == 1))
    other["r"]["v"][0] |= 4
    assert not disagreements(AMD, replace(whole, cases=[other]))


def test_where_in_use_bits_count_writes_a_switch_sets_sse_alone():
    whole = file(INTEL_NO_PKRU, "ptrace64-amx")
    bits = (case for case in whole.cases if case["r"].get("v", [7])[0] & 7 == 1)
    for bit, is_foretold in ((2, True), (4, False)):
        case = copy.deepcopy(next(bits))
        case["r"]["v"][0] |= bit
        assert (not disagreements(INTEL_NO_PKRU, replace(whole, cases=[case]))) is is_foretold


@every_recording
def test_the_processor_is_the_one_that_was_recorded(recording):
    vendor = {AMD: "AuthenticAMD", INTEL_NO_PKRU: "GenuineIntel"}
    cpu, machine = recording.cpu, recording.machine
    assert (cpu.vendor, cpu.enabled_xcr0) == (vendor[recording], machine["xcr0"])
    behaviour = Behaviour.of(cpu)
    assert machine["pointer_bits"] == {"fip": behaviour.fip_bits, "fdp": behaviour.fdp_bits}
