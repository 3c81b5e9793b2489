"""Recorded answers to images, held against the rules: XRSTOR, sigreturn, ptrace and KVM.

``check_file(file, machine)`` foretells every case of a file and tells what came out differently. ``file`` is an
``OracleFile`` of any machine, ``machine`` its machine.json; nothing here belongs to one processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from copied import Kvm, Ptrace
from judge import Foretell, Judge
from recorded_machine import cpu_of
from restored import Sigreturn, Xrstor

from fpstate.arch.component import USER_DYNAMIC
from fpstate.image.consumer import Target
from fpstate.image.rules import predict
from recorded import Case, OracleFile

TOLD: Final = 5
"""Disagreements that are told in words; all are counted."""
_JUDGES: Final[Mapping[str, type[Judge]]] = {
    "xrstor": Xrstor,
    "sigreturn": Sigreturn,
    "ptrace": Ptrace,
    "kvm": Kvm,
}


@dataclass
class Report:
    """What came of a file: ``cases`` were foretold, ``skipped`` varied when they were recorded."""

    name: str
    cases: int = 0
    skipped: int = 0
    disagreements: int = 0
    told: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refused: int = 0

    def disagree(self, number: int, case: Case, problem: str) -> None:
        """Count a case that came out differently."""
        self.disagreements += 1
        self.numbers.append(number)
        if len(self.told) < TOLD:
            self.told.append(f"{self.name} case {number}: {problem}; {case}")


def target_of(header: Mapping[str, Any], machine: Mapping[str, Any]) -> Target:
    """Return the target that a file's answers belong to."""
    permission = header.get("permission", 0)
    target = Target.from_cpu(
        cpu_of(dict(machine)),
        permitted=USER_DYNAMIC if permission else 0,
        used=0 if permission == 2 else USER_DYNAMIC,
    )
    return target.with_(guest_xcr0=0) if header.get("cpuid") == "none" else target


def check_file(
    file: OracleFile,
    machine: Mapping[str, Any],
    *,
    target: Target | None = None,
    foretell: Foretell = predict,
) -> Report:
    """Foretell every case of a file, and compare; ``target`` and ``foretell`` may be changed to see what is noticed."""
    judge = _JUDGES[file.kind](file, machine, target or target_of(file.header, machine), foretell)
    report = Report(file.name)
    for number, case in enumerate(file.cases):
        if case.get("varies"):
            report.skipped += 1
            continue
        report.cases += 1
        problem = judge.problem(case)
        report.refused += judge.was_refused
        if problem:
            report.disagree(number, case, problem)
    return report
