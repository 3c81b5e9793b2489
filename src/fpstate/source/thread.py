"""What every source yields: one thread's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fpstate.image import Image
from fpstate.image.finding import Finding

Machine = Literal["x86-64", "x32", "i386"]


@dataclass(frozen=True, slots=True)
class ThreadState:
    """One thread's image, and what there is to say about it.

    ``tid`` is None where the source names no thread. ``xcr0`` is what the producer says was enabled, None where it
    does not say. ``image.layout_source`` tells where the layout was learnt: ``"note"`` (from the producer, with the
    state), ``"given"`` (``--cpu``, ``--layout``), ``"host"`` (this processor), ``"inferred"`` (XCR0 and size fit one
    known layout alone), ``"format"`` (the format leaves no choice: FXSAVE, FSAVE, a compacted header on a known CPU).
    ``findings`` are about how the state was come by: damaged by its writer, truncated, registers lost.
    """

    tid: int | None
    image: Image
    machine: Machine = "x86-64"
    xcr0: int | None = None
    name: str = ""
    findings: tuple[Finding, ...] = ()
