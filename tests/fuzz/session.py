"""Many inputs of one kind in one process: counted, the worst noted, every new break kept with what makes it again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from grammar.kinds import Made, make
from judge import Break, Judge
from smaller import smaller
from trial import Outcome, Trial

STATS, CURRENT = "stats.json", "current"
_KEPT_PER_KEY: Final = 1
_TRIES: Final = 200


@dataclass(slots=True)
class Stats:
    """What the inputs of a kind came to: ``worst_*`` in bytes and seconds of processor time, for one verb."""

    kind: str
    inputs: int = 0
    worst_memory: int = 0
    worst_seconds: float = 0.0
    worst_inflated: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    breaks: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.inputs += 1
        self.worst_memory = max(self.worst_memory, outcome.memory)
        self.worst_seconds = max(self.worst_seconds, outcome.seconds)
        self.worst_inflated = max(self.worst_inflated, outcome.inflated)
        for (_, code), count in outcome.codes.items():
            self.codes[str(code)] += count
        self.breaks.update({each.key for each in outcome.breaks})

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


class Session:
    """Runs choices as inputs of one kind; ``finds`` is where breaks are kept, ``work`` where the count is.

    Both outlive the process, however it ends: ``current`` has the choices that were being tried.
    """

    def __init__(self, kind: str, finds: Path, work: Path) -> None:
        self.stats = Stats(kind)
        self._finds = finds.absolute()
        self._work = work.absolute()
        self._judge = Judge()
        self._trial = Trial(self._judge)

    def __enter__(self) -> Session:
        self._finds.mkdir(parents=True, exist_ok=True)
        self._judge.__enter__()
        self._trial.__enter__()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._current = os.open(self._work / CURRENT, flags, 0o600)
        self._stats = os.open(self._work / STATS, flags, 0o600)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._trial.__exit__(kind, error, at)
        self._judge.__exit__(kind, error, at)

    def attempt(self, data: bytes, number: int | None = None) -> Outcome:
        """Run the input that some choices make; ``number`` is theirs under the seed, where they have one."""
        os.pwrite(self._current, data, 0)
        os.ftruncate(self._current, len(data))
        made = make(self.stats.kind, data)
        outcome = self._trial.run(made)
        known = set(self.stats.breaks)
        self.stats.add(outcome)
        for each in outcome.breaks:
            if each.key not in known:
                known.add(each.key)
                self._keep(each, made, data, number)
        text = self.stats.to_json().encode()
        os.pwrite(self._stats, text, 0)
        os.ftruncate(self._stats, len(text))
        return outcome

    def _keep(self, found: Break, made: Made, data: bytes, number: int | None) -> None:
        """Write a break down with the smallest input that still shows it."""

        def shows(choices: bytes) -> bool:
            again = self._trial.run(make(made.kind, choices))
            return any(each.key == found.key for each in again.breaks)

        # A slow break would take its time for each try.
        least = smaller(data, shows, tries=_TRIES if found.kind not in ("time", "memory") else 10)
        keep(self._finds, found, made.kind, least, seed_number=number, choices=data)


def keep(
    finds: Path, found: Break, kind: str, least: bytes, *, seed_number: int | None, choices: bytes
) -> Path:
    """Write the file that breaks something, and beside it what says how; return the latter's path."""
    made = make(kind, least)
    name = re.sub(r"[^\w]+", "-", f"{kind}-{found.kind}")
    stem = finds / f"{name}-{hashlib.sha256(found.key.encode()).hexdigest()[:8]}"
    stem.with_suffix(".bin").write_bytes(made.data)
    options = {key: value for key, value in asdict(made).items() if key != "data"}
    told: dict[str, Any] = {
        **{"key": found.key, "text": found.text, "kind": kind, "number": seed_number},
        **{"choices": least.hex(), "first_choices": choices.hex(), "input": options},
    }
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(told, indent=1))
    return path
