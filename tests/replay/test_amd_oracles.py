"""What an AMD processor and its kernel answered is what rules and model foretell of it, on any machine."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
from every_replay import disagreements, falsified

from fpstate.engine.model import Behaviour
from recorded import AMD, OracleFile


@cache
def file(name: str) -> OracleFile:
    return AMD.read(name)


def test_the_recording_is_whole():
    assert not AMD.altered()
    assert {file(name).kind for name in AMD.names()} == {"sequences", "xrstor", "sigreturn", "ptrace", "kvm"}


@pytest.mark.parametrize("name", AMD.names())
def test_every_answer_is_foretold(name):
    assert not disagreements(AMD, file(name))


@pytest.mark.parametrize("name", AMD.names())
def test_nearly_every_case_was_stable(name):
    assert sum(1 for case in file(name).cases if case.get("varies")) <= len(file(name).cases) // 50


@pytest.mark.parametrize("name", AMD.names())
def test_a_single_wrong_answer_is_noticed(name):
    assert disagreements(AMD, falsified(file(name)))


def test_in_use_bits_may_be_more_by_a_switch_of_tasks_and_never_less():
    whole = file("ptrace64")
    case = copy.deepcopy(
        next(case for case in whole.cases if case["r"].get("v", [0])[0] == AMD.machine["xcr0"])
    )
    case["r"]["v"][0] &= ~4
    assert disagreements(AMD, replace(whole, cases=[case]))
    other = copy.deepcopy(next(case for case in whole.cases if case["r"].get("v", [7])[0] & 7 == 1))
    other["r"]["v"][0] |= 4
    assert not disagreements(AMD, replace(whole, cases=[other]))


def test_the_processor_is_the_one_that_was_recorded():
    cpu, machine = AMD.cpu, AMD.machine
    assert (cpu.vendor, cpu.enabled_xcr0) == ("AuthenticAMD", machine["xcr0"])
    behaviour = Behaviour.of(cpu)
    assert machine["pointer_bits"] == {"fip": behaviour.fip_bits, "fdp": behaviour.fdp_bits}
