"""A vCPU as schedulers and reports see it: a VSO with a program, and how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from fpstate.errors import FpStateError
from fpstate.vso.vso import Vso


class ExitKind(enum.Enum):
    """Why a vCPU ended."""

    FINISHED = "finished"
    FAILED = "failed"
    FAULT = "fault"
    DENIED = "denied"
    EXPIRED = "expired"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a vCPU ended.

    ``code`` is the operation of an orderly exit. For faults: the ``signal``'s name, ``si_code``, the exception's
    ``vector`` and ``error_code``, the ``address`` (of the access for page faults, else of the instruction) and
    ``rip``, both counted from the program's base where they lie in the guest's memory; ``note`` is what else is known.
    ``error`` is the reason of DENIED and REFUSED, and of FAILED where the program spoilt its result. For a state that
    XRSTOR refused it is a RestoreFault, which has vector, offset and component.
    """

    kind: ExitKind
    code: int = 0
    signal: str = ""
    si_code: int = 0
    vector: int = 0
    error_code: int = 0
    address: int = 0
    rip: int = 0
    error: FpStateError | None = None
    note: str = ""

    def __str__(self) -> str:
        match self.kind:
            case ExitKind.FAULT:
                note = f": {self.note}" if self.note else ""
                return (
                    f"{self.signal} (vector {self.vector}) at {self.rip:#x}, address {self.address:#x}{note}"
                )
            case ExitKind.FAILED:
                return f"failed with code {self.code:#x}{f': {self.error}' if self.error else ''}"
            case ExitKind.DENIED | ExitKind.REFUSED:
                return f"{self.kind.value}: {self.error}"
            case ExitKind.EXPIRED:
                return "used up its processor time"
            case _:
                return "finished"


class Vcpu(Protocol):
    """What an engine's vCPUs have in common."""

    name: str
    vso: Vso
    exit: Exit | None

    @property
    def slices(self) -> int:
        """How often it was entered."""

    @property
    def preemptions(self) -> int:
        """How often it was stopped in the middle."""
