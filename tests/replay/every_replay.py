"""Every replayer that there is for a file of recorded answers, and answers that are wrong on purpose."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Final

import image_replay
import kernel_replay
import restore_replay
import sequence_replay
from replay_report import Report

from recorded import Case, OracleFile, Oracles

_REPLAYS: Final[Mapping[str, Sequence[ModuleType]]] = {
    "sequences": [sequence_replay],
    "xrstor": [image_replay, restore_replay],
    "sigreturn": [image_replay, kernel_replay],
    "ptrace": [image_replay, kernel_replay],
    "kvm": [image_replay],
}


def reports(oracles: Oracles, file: OracleFile) -> list[Report]:
    """Replay a file: sequences on the model, all else against the rules, and on a model too where there is one."""
    return [replay.check_file(file, oracles.machine) for replay in _REPLAYS[file.kind]]


def disagreements(oracles: Oracles, file: OracleFile) -> list[str]:
    """Return what every replay of a file says that is not as recorded."""
    return [told for report in reports(oracles, file) for told in report.told]


def falsified(file: OracleFile) -> OracleFile:
    """The same file with a single answer put wrong, in the middle."""
    cases = copy.deepcopy(file.cases)
    middle = len(cases) // 2
    case = next(case for case in cases[middle:] if not case.get("varies") and _falsify(case))
    return replace(file, cases=[case])


def _falsify(case: Case) -> bool:
    """Change one thing: a digest of what a save left, MXCSR afterwards, or an errno; whether it could be done."""
    answer = case["r"]
    if isinstance(answer, list):
        for each in answer:
            if each and "a" in each.get("s", {}):
                each["s"]["a"] ^= 1
                return True
        return False
    if "g" in answer:
        answer["g"][0] ^= 1
        return True
    if "b" in answer:
        answer["b"][1] ^= 1
        return True
    if answer["e"]:
        answer["e"] ^= 1
        return True
    return False
