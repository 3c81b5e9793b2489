"""What a scripted context does, step by step: data, which the engine performs. No instructions are interpreted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpstate.vso.permission import Kind


@dataclass(frozen=True, slots=True)
class Write:
    """Write registers, as instructions do that need their components; names as in ``fpstate.Registers``."""

    registers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Check:
    """Compare registers with what they must hold."""

    registers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Inspect:
    """Look at every register that the processor has, held back or not, and report it: what a probe does."""


@dataclass(frozen=True, slots=True)
class Yield:
    """Leave voluntarily; a guest leaves to its host."""


@dataclass(frozen=True, slots=True)
class Release:
    """TILERELEASE."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the kernel for a dynamic component (``arch_prctl``)."""

    component: int
    kind: Kind = Kind.HOST


@dataclass(frozen=True, slots=True)
class Signal:
    """Take a signal: the steps that follow are its handler."""


@dataclass(frozen=True, slots=True)
class Return:
    """Return from the handler."""


@dataclass(frozen=True, slots=True)
class SetXfd:
    """In a guest: write IA32_XFD."""

    value: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A step that must be refused: by an exception (``#NM``, ``#UD``, ``#GP``) or an errno (``EPERM``, which a task
    sees as SIGILL; ``EBUSY``, ``EOPNOTSUPP``, ``EINVAL``)."""

    step: Step
    how: str


Step = Write | Check | Inspect | Yield | Release | Ask | Signal | Return | SetXfd | Refused
