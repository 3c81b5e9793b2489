"""A scripted context: a list of steps for a setting, what it needs, and whether its result is right."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import mask_text
from fpstate.arch.cpu import Cpu
from fpstate.engine.model.step import Check, Refused, Step
from fpstate.vso.permission import Kind

_HEAD: Final = struct.Struct("<3Q")
"""Checks made, checks that failed, steps done; the first failure follows as text."""
_TEXT: Final = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """What a script is written for: a processor, the components that its context may use, and its data."""

    cpu: Cpu
    features: int
    kind: Kind
    seed: int
    argument: int


@dataclass(frozen=True, slots=True)
class Script:
    """``required`` components are those without which it makes no sense. ``kind``: whose context it is, None for
    either. ``asks``: it is given dynamic components where there are any; ``denied``: those that its context is not
    permitted, whatever its process is. ``branches``: last branch records are kept for it."""

    name: str
    description: str
    build: Callable[[Setting], Iterable[Step]]
    required: int = 0
    kind: Kind | None = None
    asks: bool = False
    denied: int = 0
    branches: bool = False
    default_argument: int = 3
    in_mix: bool = True

    def steps(self, setting: Setting) -> tuple[Step, ...]:
        """Return what a context does."""
        return tuple(self.build(setting))

    def missing(self, usable: int) -> str | None:
        """Say what is lacking where the components in ``usable`` are all there is; None where it can run."""
        return mask_text(self.required & ~usable) if self.required & ~usable else None

    def check(self, result: bytes, seed: int, argument: int | None = None, features: int = 0) -> str | None:
        """Return None for the right result, else what differs. A script that made no check is not right."""
        if len(result) < _HEAD.size:
            return f"{self.name}: the result has {len(result)} bytes"
        made, failed, _ = _HEAD.unpack_from(result)
        if failed:
            return f"{self.name}: {failed} of {made} checks failed, first: {result[_HEAD.size :].decode()}"
        return None if made else f"{self.name}: no check was made"


def result_of(made: int, failed: int, steps: int, first: str) -> bytes:
    """Return the result that ``Script.check`` reads; ``first`` says what failed first."""
    return _HEAD.pack(made, failed, steps) + first[:_TEXT].encode()


def counts(step: Step) -> int:
    """Return how many checks a step makes."""
    if isinstance(step, Refused):
        return 1
    return len(step.registers) if isinstance(step, Check) else 0
