"""Which layout raw bytes have: from a processor that is named, from their header, or from their length.

Nothing is taken at random: where several processors fit and disagree, they are named and none is chosen.
"""

from __future__ import annotations

from functools import lru_cache

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY,
    components_in,
    mask_of,
    mask_text,
    xcr0_complete,
    xcr0_problem,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import AmbiguousLayout, LayoutError
from fpstate.source.inference import KNOWN, infer, layout_of


def standard_layout(cpu: Cpu, length: int) -> Layout:
    """Return the layout of all components of a processor that end within ``length``, if it ends there.

    A length beyond all that the processor has is taken for padded. Raises LayoutError for one in between.
    """
    whole = Layout.standard(cpu, cpu.xcr0)
    mask = LEGACY | sum(
        1 << place.component for place in whole.places if place.end <= length and place.component > 1
    )
    layout = Layout.standard(cpu, mask)
    if layout.size != length and length < whole.size:
        raise LayoutError(
            f"no set of components has {length} bytes on {cpu.name}: {mask_text(mask)} has {layout.size},"
            f" all it has {whole.size}",
            help="name the processor that made the state, or pass exactly the state",
        )
    return layout


def stated_layout(cpu: Cpu, xcr0: int) -> Layout:
    """Return the standard layout of what a producer says was enabled, on the processor that it is said to be."""
    if xcr0 & (~cpu.xcr0 | COMPACTED_BIT):
        raise LayoutError(
            f"{xcr0:#x} was enabled, {cpu.name} supports {cpu.xcr0:#x}: another processor made it",
            help="leave --cpu out, and the layout is inferred where that can be done",
        )
    return Layout.standard(cpu, xcr0)


def plausible_xcr0(value: int) -> bool:
    """Tell whether a processor could have this XCR0; bytes that nobody wrote seldom look like one."""
    return 0 < value < COMPACTED_BIT and xcr0_problem(value, value) is None


def inferred_layout(xcr0: int, length: int, xstate_bv: int) -> tuple[Layout, bool]:
    """Return the one known layout for a length, and whether ``xcr0`` was of use to find it.

    ``xcr0`` is what the software bytes hold, which may be anything. Raises as ``inference.infer`` does.
    """
    if plausible_xcr0(xcr0) and xstate_bv & ~xcr0 == 0:
        try:
            return infer(xcr0, length), True
        except AmbiguousLayout:
            raise
        except LayoutError:
            pass
    return infer(0, length, xstate_bv), False


def within(layout: Layout, length: int) -> Layout:
    """Return a standard layout without the components that end beyond ``length``, nor those that go with them.

    As in XCR0, TILECFG goes with TILEDATA.
    """
    held = xcr0_complete(mask_of(*(place.component for place in layout.places if place.end <= length)))
    places = [place for place in layout.places if held >> place.component & 1]
    return layout if layout.size <= length else Layout.from_places(layout.format, places)


def padded_layout(xcr0: int, length: int) -> Layout:
    """Return the one known layout of ``xcr0`` in a buffer that is as long as any state or longer; 0 is: not stated.

    Where ``xcr0`` is stated, components that end beyond the buffer are left out as ``within`` does.
    Raises AmbiguousLayout where known layouts differ, LayoutError where none fits.
    """
    fitting: dict[Layout, list[str]] = {}
    for known in KNOWN:
        if (xcr0 or known.xcr0) & ~known.xcr0 == 0:
            layout = layout_of(known.places, xcr0 or known.xcr0)
            layout = within(layout, length) if xcr0 else layout
            if layout.size <= length:
                fitting.setdefault(layout, []).extend(known.cpus)
    stated = f"XCR0 {xcr0:#x}" if xcr0 else "an XCR0 that is not stated"
    if not fitting:
        raise LayoutError(
            f"no known processor has a state for {stated} within {length} bytes",
            help="name its producer with --cpu",
        )
    if len(fitting) > 1:
        raise AmbiguousLayout(
            f"{len(fitting)} known layouts are there for {stated}, and the length says nothing",
            [name for names in fitting.values() for name in names],
        )
    return next(iter(fitting))


@lru_cache(maxsize=64)
def compacted_layout(xcomp_bv: int, length: int, cpu: Cpu | None = None) -> Layout:
    """Return the layout that a compacted header names; without a processor, that on which the catalog agrees.

    Processors whose layout needs more than ``length`` bytes did not make it. Raises AmbiguousLayout where others
    have these components at different offsets, LayoutError where none has them all.
    """
    mask = xcomp_bv & ~COMPACTED_BIT
    if cpu is not None:
        return Layout.compacted(cpu, mask)
    found: dict[Layout, list[str]] = {}
    for each in map(Cpu.catalog, Cpu.catalog_names()):
        if all(number in each.geometry for number in components_in(mask & ~LEGACY)):
            found.setdefault(Layout.compacted(each, mask), []).append(each.name)
    if not found:
        raise LayoutError(f"no known processor has {mask_text(mask)}", help="name its producer with --cpu")
    fitting = {layout: cpus for layout, cpus in found.items() if layout.size <= length}
    # Zen 2 has 64 bytes for PKRU where others have 8: the register lies in the first of them all the same.
    if len({tuple((place.component, place.offset) for place in layout.places) for layout in fitting}) > 1:
        raise AmbiguousLayout(
            f"processors lay {mask_text(mask)} out differently in the compacted format",
            [name for names in fitting.values() for name in names],
        )
    return min(fitting or found, key=lambda layout: layout.size)
