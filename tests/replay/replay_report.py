"""What a replay of recorded answers found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """How many cases were looked at, how many of them are not to be compared, and what disagreed.

    ``counts`` has what the cases contained, and the choices that were taken over from the recording.
    """

    cases: int = 0
    skipped: int = 0
    disagreements: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
