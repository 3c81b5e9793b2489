"""What a section is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from .quantity import Ratio
from .sample import LEAST_REPEATS

SCHEMA: Final = "fpstate-bench/2"
MANY: Final = (1, 16, 1_000, 100_000, 1_000_000)
"""How many contexts the round robins have."""


@dataclass(frozen=True)
class Settings:
    """How much is measured: repeats of every sample, switches in a sample, contexts of the round robins."""

    repeats: int = LEAST_REPEATS
    steps: int = 20_000
    many: tuple[int, ...] = MANY
    many_steps: int = 20_000
    million: int = 1_000_000
    quick: bool = False

    @classmethod
    def quickly(cls) -> Settings:
        """Return settings that show whether everything works, and whose figures are worth little."""
        return cls(repeats=3, steps=2_000, many=(1, 16, 1_000), many_steps=2_000, million=20_000, quick=True)

    def as_json(self) -> dict[str, Any]:
        """Return the settings by name."""
        return {**vars(self), "many": list(self.many)}


@dataclass(frozen=True)
class Measured:
    """One section: its ratios by the names of their quantities, its rows, and what was missing, by name, with why."""

    ratios: dict[str, Ratio]
    details: Any
    missing: dict[str, str] = field(default_factory=dict)
