"""The replay of a file of recorded answers, case by case, and what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from recorded import Case, OracleFile

MANY = 1000
"""How many disagreements are enough."""


@dataclass
class Report:
    """How many cases were looked at, how many of them are not to be compared, and what disagreed.

    ``counts`` has what the cases contained, and the choices that were taken over from the recording.
    """

    cases: int = 0
    skipped: int = 0
    disagreements: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def replayed(
    file: OracleFile, problem: Callable[[Case], str], *, most: int, operations: Collection[str] = ()
) -> Report:
    """Ask of each case what is not as recorded; ends after ``most`` disagreements.

    ``operations``: cases of others are left out.
    """
    report = Report()
    for number, case in enumerate(file.cases):
        if len(report.disagreements) >= most:
            break
        if operations and case["o"] not in operations:
            continue
        report.cases += 1
        if case.get("varies"):
            report.skipped += 1
        elif found := problem(case):
            report.disagreements.append(f"{file.name}, case {number}: {found}")
    return report
