"""What a modelled processor has beside its registers: what is enabled, its mode, and where components lie."""

from __future__ import annotations

from typing import Final, NamedTuple

from fpstate.arch.component import (
    AMX,
    AVX512,
    LEGACY,
    MIN_SIZE,
    Component,
    mask_of,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.engine.model.behaviour import Behaviour
from fpstate.engine.model.fault import NOT_AVAILABLE, UNDEFINED, fault, refusal
from fpstate.engine.model.register_file import REACHED, RegisterFile

SWITCHED: Final = LEGACY | AVX512 | mask_of(Component.AVX)
"""Components whose instructions raise #NM while CR0.TS is set (SDM Vol. 3, 2.5); those of AMX do not."""
GATED: Final = AVX512 | AMX | mask_of(Component.AVX, Component.BNDREGS, Component.BNDCSR, Component.APX)
"""Components whose instructions raise #UD unless XCR0 enables them (SDM Vol. 1, 13.3)."""
ALL: Final = (1 << 64) - 1


class Span(NamedTuple):
    """One extended component in an area: its number, its bit, and its bytes from ``start`` to ``end``."""

    component: int
    bit: int
    start: int
    end: int


Spans = tuple[Span, ...]


class Places:
    """Where the extended components of masks lie, by format, kept once they were worked out."""

    def __init__(self, cpu: Cpu) -> None:
        self._cpu = cpu
        self._standard: dict[int, tuple[Spans, int]] = {}
        self._compacted: dict[int, tuple[Spans, int]] = {}

    def standard(self, mask: int) -> tuple[Spans, int]:
        """Return the spans of a mask in the standard format, and how many bytes an area with them has."""
        if mask not in self._standard:
            self._standard[mask] = _spans(Layout.standard(self._cpu, mask))
        return self._standard[mask]

    def compacted(self, mask: int) -> tuple[Spans, int]:
        """Return the same for the compacted format with an XCOMP_BV of ``mask``."""
        if mask not in self._compacted:
            self._compacted[mask] = _spans(Layout.compacted(self._cpu, mask))
        return self._compacted[mask]


def reached(spans: Spans) -> Spans:
    """Return the spans with no more of each component than exists outside 64-bit mode."""
    return tuple(
        span._replace(end=min(span.end, span.start + REACHED.get(span.component, span.end))) for span in spans
    )


def touched(spans: Spans, mask: int) -> int:
    """Return how many bytes an instruction needs that reaches the last byte of each of these components."""
    return max((MIN_SIZE, *(span.end for span in spans if mask & span.bit)))


def _spans(layout: Layout) -> tuple[Spans, int]:
    spans = tuple(
        Span(int(place.component), 1 << place.component, place.offset, place.end)
        for place in sorted(layout.places, key=lambda place: place.component)
        if place.component > Component.SSE
    )
    return spans, max((MIN_SIZE, *(span.end for span in spans)))


class Machine:
    """A processor's mode and control registers, after power-up: XCR0 = 1, IA32_XSS = 0, IA32_XFD = 0, CPL 0.

    ``cpl`` is the privilege level, ``task_switched`` CR0.TS, ``osxsave`` CR4.OSXSAVE, ``alignment_check``
    whether CR0.AM and EFLAGS.AC are both set, ``non_root`` whether it runs in VMX non-root operation,
    ``long_mode`` whether it is in 64-bit mode.
    Change them freely. ``xcr0``, ``xss`` and ``xfd`` are for XSETBV and WRMSR to change, which check them.
    """

    def __init__(self, cpu: Cpu, behaviour: Behaviour | None = None) -> None:
        self.cpu = cpu
        self.behaviour = Behaviour.of(cpu) if behaviour is None else behaviour
        self.places = Places(cpu)
        self.file = RegisterFile.for_cpu(cpu, self.behaviour)
        self.xcr0 = 1
        self.xss = 0
        self.xfd = 0
        self.xfd_err = 0
        self.cpl = 0
        self.task_switched = False
        self.osxsave = True
        self.alignment_check = False
        self.non_root = False
        self.long_mode = True

    def need(self, *features: str) -> None:
        """Raise #UD where the processor lacks an instruction, or where CR4.OSXSAVE is clear; #NM for CR0.TS."""
        for feature in features:
            if not self.cpu.has(feature):
                raise fault(UNDEFINED, f"{self.cpu.name} has no {feature}", "CPUID")
        if not self.osxsave:
            raise fault(UNDEFINED, "CR4.OSXSAVE is clear", "SDM Vol. 1, 13.3")
        if self.task_switched:
            raise fault(NOT_AVAILABLE, "CR0.TS is set", "SDM Vol. 1, 13.2")

    def use(self, components: int) -> None:
        """Do what an instruction does first that needs these components: raise #UD or #NM, or nothing.

        #NM for IA32_XFD sets IA32_XFD_ERR to the components that were held back; #NM for CR0.TS leaves it.
        """
        if missing := components & GATED & ~self.xcr0:
            raise fault(UNDEFINED, f"XCR0 {self.xcr0:#x} lacks {mask_text(missing)}", "SDM Vol. 1, 13.3")
        if self.task_switched and components & SWITCHED:
            raise fault(NOT_AVAILABLE, "CR0.TS is set", "SDM Vol. 3, 2.5")
        self.held_back(components & self.xcr0)

    def held_back(self, components: int, rule: str = "") -> None:
        """Raise #NM and set IA32_XFD_ERR where IA32_XFD holds some of these components back."""
        if held := components & self.xfd:
            self.xfd_err = held
            reason = f"IA32_XFD holds back {mask_text(held)}"
            if rule:
                raise refusal(rule, reason, vector=NOT_AVAILABLE)
            raise fault(NOT_AVAILABLE, reason, "SDM Vol. 1, 13.14")

    def in_use(self) -> int:
        """XINUSE as saves take it, without what IA32_XFD holds back."""
        file = self.file
        seen = file.in_use if self.long_mode or self.behaviour.upper_in_use else file.lower
        return seen & ~self.xfd

    def selectors(self) -> tuple[int, int]:
        """FCS and FDS as a save without REX.W writes them."""
        return self.file.selectors if self.behaviour.selectors else (0, 0)

    def take_selectors(self, value: bytes) -> bytes:
        """Take FCS and FDS out of x87 fields that were loaded without REX.W; the pointers keep 32 bits."""
        fcs, fds = value[12] | value[13] << 8, value[20] | value[21] << 8
        self.file.selectors = (fcs, fds) if self.behaviour.selectors else (0, 0)
        return value[:12] + bytes(4) + value[16:20] + bytes(4) + value[24:]
