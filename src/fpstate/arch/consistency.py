"""Does a processor's record agree with itself? Emulators, hypervisors and dumping tools often do not.

Sources: SDM Vol. 1, 13.2 and 13.4.3; the same checks disable XSAVE in Linux (``paranoid_xstate_size_valid``,
``check_xstate_against_struct`` in ``arch/x86/kernel/fpu/xstate.c``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from fpstate.arch.component import (
    COMPONENTS,
    LEGACY,
    MIN_SIZE,
    Component,
    component_name,
    components_in,
    mask_of,
)
from fpstate.arch.component import MPX as MPX_MASK
from fpstate.arch.cpu import Cpu


@dataclass(frozen=True, slots=True)
class Contradiction:
    """One disagreement: ``code`` names its kind, ``component`` its place, ``found`` against ``expected``."""

    code: str
    component: int | None
    found: int
    expected: int

    def __str__(self) -> str:
        where = "" if self.component is None else f":{component_name(self.component)}"
        return f"{self.code}{where} (found {self.found:#x}, expected {self.expected:#x})"


def contradictions(cpu: Cpu) -> tuple[Contradiction, ...]:
    """Return every disagreement in a processor's record, in a fixed order.

    Codes: ``legacy_bits``, ``apx_with_mpx``, ``component_without_feature``, ``feature_without_component``,
    ``missing_subleaf``, ``subleaf_not_enumerated``, ``supervisor_flag``, ``component_size``,
    ``tiledata_without_xfd``, ``overlap``, ``standard_size``.
    """
    return tuple(
        finding
        for check in (_masks, _features, _subleaves, _geometries, _overlaps, _standard_size)
        for finding in check(cpu)
    )


def _masks(cpu: Cpu) -> Iterator[Contradiction]:
    if not cpu.has("XSAVE"):
        return
    if cpu.xcr0 & LEGACY != LEGACY:
        yield Contradiction("legacy_bits", None, cpu.xcr0 & LEGACY, LEGACY)
    if cpu.xcr0 & MPX_MASK and cpu.xcr0 >> Component.APX & 1:
        yield Contradiction("apx_with_mpx", Component.APX, cpu.xcr0, cpu.xcr0 & ~MPX_MASK)


def _features(cpu: Cpu) -> Iterator[Contradiction]:
    enumerated = cpu.xcr0 | cpu.xss
    for info in COMPONENTS.values():
        if LEGACY >> info.component & 1:
            continue
        present, flagged = bool(enumerated >> info.component & 1), cpu.has(info.feature)
        if present and not flagged:
            yield Contradiction("component_without_feature", info.component, 0, 1)
        if flagged and not present and not info.supervisor and cpu.has("XSAVE"):
            yield Contradiction("feature_without_component", info.component, 0, 1)


def _subleaves(cpu: Cpu) -> Iterator[Contradiction]:
    enumerated = cpu.xcr0 | cpu.xss
    described = mask_of(*cpu.geometry)
    for component in components_in(enumerated & ~described & ~LEGACY):
        yield Contradiction("missing_subleaf", component, 0, 1)
    for component in components_in(described & ~enumerated):
        yield Contradiction("subleaf_not_enumerated", component, 1, 0)


def _geometries(cpu: Cpu) -> Iterator[Contradiction]:
    for component, geometry in cpu.geometry.items():
        enumerated_supervisor = bool(cpu.xss >> component & 1)
        if (cpu.xcr0 | cpu.xss) >> component & 1 and geometry.supervisor != enumerated_supervisor:
            yield Contradiction("supervisor_flag", component, geometry.supervisor, enumerated_supervisor)
        info = COMPONENTS.get(component)
        if info is not None and geometry.size != info.size:
            yield Contradiction("component_size", component, geometry.size, info.size)
        if component == Component.TILEDATA and cpu.has("XFD") and not geometry.xfd:
            yield Contradiction("tiledata_without_xfd", component, 0, 1)


def _overlaps(cpu: Cpu) -> Iterator[Contradiction]:
    user = [(g.offset, g.offset + g.size, n) for n, g in cpu.geometry.items() if not g.supervisor]
    for (_, end, _), (offset, _, component) in pairwise([(0, MIN_SIZE, 0), *sorted(user)]):
        if offset < end:
            yield Contradiction("overlap", component, offset, end)


def _standard_size(cpu: Cpu) -> Iterator[Contradiction]:
    if not cpu.has("XSAVE") or cpu.xcr0 & ~LEGACY & ~mask_of(*cpu.geometry):
        return
    ends = [g.offset + g.size for n, g in cpu.geometry.items() if cpu.xcr0 >> n & 1 and not g.supervisor]
    computed = max((MIN_SIZE, *ends))
    if cpu.standard_size != computed:
        yield Contradiction("standard_size", None, cpu.standard_size, computed)
