"""NT_X86_XSTATE: an XSAVE image in the standard format, whose places have to be learnt from elsewhere.

In order of trust: the layout that the producer stated beside it, the processor that the caller names, and the one
known layout that XCR0 and the size leave. What gdb is known to have damaged is left out.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from fpstate.arch.component import AMX, COMPACTED_BIT, LEGACY_PLACES, MIN_SIZE
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout, Place
from fpstate.errors import AmbiguousLayout, FpStateError, LayoutError, SourceError
from fpstate.image import Image
from fpstate.image.finding import Finding
from fpstate.source import writer
from fpstate.source.inference import infer

XCR0_OFFSET: Final = 464
"""Where the producer states its XCR0 (Linux ``xstateregs_get``; gdb ``I386_LINUX_XSAVE_XCR0_OFFSET``)."""
_XSTATE_BV_OFFSET: Final = 512
_RECORD: Final = struct.Struct("<IIII")


class Producer(NamedTuple):
    """What is known of the processor that made a register set, besides the register set itself.

    ``layout`` is what the producer stated, ``cpu`` what the caller says, ``hwcap`` AT_HWCAP, which is the EDX of
    CPUID leaf 1 on x86, ``frame`` AT_MINSIGSTKSZ; None where nothing was said.
    """

    layout: Layout | None = None
    cpu: Cpu | None = None
    hwcap: int | None = None
    frame: int | None = None


class RegisterSet(NamedTuple):
    """A register set understood: its image, the XCR0 it states if it states one, and what happened to it."""

    image: Image
    xcr0: int | None
    findings: tuple[Finding, ...]


def read_register_set(data: bytes, producer: Producer, *, name: str, offset: int) -> RegisterSet:
    """Find the layout of a register set; ``name`` and ``offset`` say in errors where it came from.

    Raises SourceError where it is cut short or fits no layout, AmbiguousLayout where it fits several.
    """
    if len(data) < MIN_SIZE:
        raise SourceError(
            name, f"{len(data)} bytes, fewer than the {MIN_SIZE} of an XSAVE image", offset=offset
        )
    xcr0, xstate_bv = (int.from_bytes(data[at : at + 8], "little") for at in (XCR0_OFFSET, _XSTATE_BV_OFFSET))
    findings: list[Finding] = []
    damaged = 0
    by_gdb = writer.by_gdb(data, xcr0, xstate_bv)
    if by_gdb:
        findings.append(writer.written_by_gdb())
        if producer.layout is None:
            damaged = writer.damaged(xcr0, len(data), producer.hwcap, producer.cpu)
        if writer.leaves_tiles_out(xcr0, len(data), producer.frame, _enabled(producer)):
            findings += writer.tiles_left_out()
    try:
        if damaged:
            data, layout = writer.without(data, writer.intel_layout(xcr0, len(data)), damaged)
            findings += writer.lost(damaged)
            layout_source = "inferred"
        else:
            mask = xcr0 | writer.padding(xcr0, len(data)) if by_gdb else xcr0
            layout, layout_source = _find_layout(producer, mask, xstate_bv, len(data))
            if by_gdb:
                layout = _without(layout, AMX & ~xcr0)
    except AmbiguousLayout as error:
        raise AmbiguousLayout(f"{name} at byte {offset}: {error}", error.candidates) from error
    except FpStateError as error:
        raise SourceError(name, str(error), offset=offset, help=error.help) from error
    return RegisterSet(Image(data, layout, layout_source), xcr0 or None, tuple(findings))


def stated_layout(data: bytes) -> Layout:
    """Read NT_X86_XSAVE_LAYOUT: component, size, offset and flags of each component from 2 on.

    Source: Linux ``struct x86_xfeat_component``. Raises LayoutError for what is no layout.
    """
    if not data or len(data) % _RECORD.size:
        raise LayoutError(f"{len(data)} bytes are no whole number of records of {_RECORD.size}")
    places = [Place(component, *place) for component, place in LEGACY_PLACES.items()]
    places += [Place(number, offset, size) for number, size, offset, _ in _RECORD.iter_unpack(data)]
    return Layout.from_places(Format.STANDARD, places)


def _find_layout(
    producer: Producer, xcr0: int, xstate_bv: int, size: int
) -> tuple[Layout, Literal["note", "given", "inferred"]]:
    if producer.layout is not None:
        return _sized(producer.layout, size), "note"
    if producer.cpu is not None:
        return _given(producer.cpu, xcr0, size), "given"
    return infer(xcr0, size, 0 if xcr0 else xstate_bv), "inferred"


@lru_cache(maxsize=8)
def _sized(layout: Layout, size: int) -> Layout:
    """Return a stated layout for a register set of ``size`` bytes: one for all threads of a core."""
    return Layout.from_places(Format.STANDARD, layout.places, size=size)


def _enabled(producer: Producer) -> int:
    """Return the components that the producer states, or that the processor has which is said to be the producer."""
    if producer.layout is not None:
        return producer.layout.mask
    return 0 if producer.cpu is None else producer.cpu.xcr0


def _without(layout: Layout, components: int) -> Layout:
    """Return a layout of the same size without components of which nothing was stored."""
    if not layout.mask & components:
        return layout
    places = [place for place in layout.places if not components >> place.component & 1]
    return Layout.from_places(Format.STANDARD, places, size=layout.size)


def _given(cpu: Cpu, xcr0: int, size: int) -> Layout:
    if xcr0 & (~cpu.xcr0 | COMPACTED_BIT):
        raise LayoutError(
            f"its XCR0 is {xcr0:#x}, {cpu.name} supports {cpu.xcr0:#x}: another processor made it",
            help="leave --cpu out, and the layout is inferred where that can be done",
        )
    layout = Layout.standard(cpu, xcr0 or None)
    if layout.size != size:
        raise LayoutError(
            f"{size} bytes, but for XCR0 {layout.mask:#x} {cpu.name} has {layout.size}",
            help="another processor made it, or it was cut short",
        )
    return layout
