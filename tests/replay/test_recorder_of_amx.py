"""The recorder on a machine with AMX, XFD and PKRU, which is the model of one: what it asks and writes down."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache, partial
from typing import Any

import image_replay
import pytest
import restore_replay
import sequence_replay
from every_replay import falsified
from model_child import ModelChild
from recording.host import NONE, UNUSED, USED, Host
from recording.images import record_xrstor
from recording.inputs import Inputs, make_pool
from recording.perform import record_sequences

from fpstate.arch import Cpu
from recorded import INTEL, OracleFile

HOST = Host(Cpu.catalog("emerald-rapids"), 0x602E7)
POOL = make_pool(1)
SEQUENCES = {NONE: 300, USED: 300, UNUSED: 40}
RESTORES = 600
Header = dict[str, Any]


def as_file(made: tuple[Header, Any]) -> OracleFile:
    """A file as it is read back."""
    header, cases = json.loads(json.dumps([made[0], list(made[1])]))
    return OracleFile("recorded", header, cases, POOL)


@cache
def sequences(permission: int, *, x87: bool = False) -> OracleFile:
    new_child = partial(ModelChild, HOST, permission)
    inputs = Inputs(HOST, POOL, 5 + permission)
    count = SEQUENCES[permission]
    return as_file(record_sequences(HOST, inputs, count, permission, new_child, short=True, x87=x87))


@cache
def restores(permission: int) -> OracleFile:
    new_child = partial(ModelChild, HOST, permission)
    return as_file(record_xrstor(HOST, Inputs(HOST, POOL, 9), RESTORES, permission, new_child, short=True))


def faults(answers: list[Any]) -> Counter[str]:
    return Counter(str(answer["f"]) for answer in answers if answer and "f" in answer)


@pytest.mark.parametrize("x87", [False, True], ids=["", "x87"])
@pytest.mark.parametrize("permission", SEQUENCES, ids=["none", "used", "unused"])
def test_sequences_are_foretold(permission, x87):
    file = sequences(permission, x87=x87)
    report = sequence_replay.check_file(file, INTEL.machine)
    assert not report.disagreements, report.told[:3]
    assert report.cases == SEQUENCES[permission]
    assert not report.skipped


def test_sequences_have_what_this_machine_has():
    """Tiles that are held back and tiles that are not, PKRU that closes key 0, every operation."""
    answers = {
        permission: [a for case in sequences(permission).cases for a in case["r"]] for permission in SEQUENCES
    }
    held_back = str([4, 1, None])
    assert faults(answers[NONE])[held_back] > 50
    assert not faults(answers[USED])[held_back]
    assert not faults(answers[UNUSED])[held_back]
    assert sum(1 for answer in answers[USED] if answer and "k" in answer) > 20
    names = {operation[0] for case in sequences(USED).cases for operation in case["o"]}
    assert {
        "ldtilecfg",
        "sttilecfg",
        "tilezero",
        "tileloadd",
        "tilestored",
        "tilerelease",
        "wrpkru",
        "rdpkru",
    } < names


@pytest.mark.parametrize("permission", [NONE, USED], ids=["none", "used"])
def test_restores_are_foretold_by_rules_and_model(permission):
    file = restores(permission)
    report = image_replay.check_file(file, INTEL.machine)
    assert not report.disagreements, report.told[:3]
    assert not restore_replay.check_file(file, INTEL.machine).disagreements
    assert faults([case["r"] for case in file.cases])[str([4, 1, None])] > 50 * (permission == NONE) - 1


def test_a_single_wrong_answer_is_noticed():
    assert sequence_replay.check_file(falsified(sequences(USED)), INTEL.machine).disagreements
    assert image_replay.check_file(falsified(restores(USED)), INTEL.machine).disagreements
