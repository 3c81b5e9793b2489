"""The replay of a file of recorded answers, case by case, and what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fpstate.arch import Cpu
from recorded import Case, OracleFile, cpu_of

Machine = Cpu | Mapping[str, Any]
"""What a file was recorded on: its processor, or what its machine.json says."""

MANY = 1000
"""How many disagreements are enough."""
TOLD = 10
"""How many of them are told in words."""


@dataclass
class Report:
    """What came of a file: ``cases`` were foretold, ``skipped`` varied when they were recorded.

    ``numbers`` are those of the cases that disagree, the first of which ``told`` has in words. ``counts`` has what the
    cases contained, how many were refused, and the choices that were taken over from the recording.
    """

    name: str
    cases: int = 0
    skipped: int = 0
    numbers: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def disagreements(self) -> int:
        """How many cases came out differently."""
        return len(self.numbers)


def replayed(
    file: OracleFile, problem: Callable[[Case], str], *, most: int, operations: Collection[str] = ()
) -> Report:
    """Ask of each case what is not as recorded; ends after ``most`` disagreements.

    ``operations``: cases of others are left out.
    """
    report = Report(file.name)
    for number, case in enumerate(file.cases):
        if report.disagreements >= most:
            break
        if operations and case["o"] not in operations:
            continue
        if case.get("varies"):
            report.skipped += 1
            continue
        report.cases += 1
        if found := problem(case):
            report.numbers.append(number)
            if len(report.told) < TOLD:
                report.told.append(f"{file.name} case {number}: {found}")
    return report


def processor_of(machine: Machine) -> Cpu:
    """Return the processor, of a machine.json too."""
    return machine if isinstance(machine, Cpu) else cpu_of(dict(machine))
