"""Windows' CONTEXT: its FXSAVE area, and the XSTATE area that a CONTEXT_EX behind it leads to.

The XSTATE area is an XSAVE image from its header on, with Mask for XSTATE_BV and CompactionMask for XCOMP_BV.
It lies where the CONTEXT_EX says, so offsets that count from the start of an XSAVE image have to be taken from
there, less the 512 bytes of the legacy region, which is the FXSAVE area in the CONTEXT.

Source: ``winnt.h`` (CONTEXT, CONTEXT_EX, XSTATE_CONFIG); "Working with XState Context", learn.microsoft.com.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from fpstate.arch.component import (
    COMPACTED_BIT,
    HEADER_SIZE,
    LEGACY,
    LEGACY_PLACES,
    LEGACY_SIZE,
    MIN_SIZE,
    Component,
    mask_of,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout, Place
from fpstate.errors import ImageError, LayoutError
from fpstate.image import Image
from fpstate.image.finding import Finding, Severity
from fpstate.image.legacy import FSAVE_SIZE, from_fsave, from_fxsave
from fpstate.image.subject import MXCSR_AT
from fpstate.source.inference import infer
from fpstate.source.known_layout import compacted_layout, standard_layout
from fpstate.source.minidump_file import XstateConfig

_FLOATING_POINT, _EXTENDED_REGISTERS, _XSTATE = 0x08, 0x20, 0x40
"""CONTEXT_FLOATING_POINT, CONTEXT_EXTENDED_REGISTERS (x86 alone) and CONTEXT_XSTATE, without the machine's bit."""
_CONTEXT_EX: Final = struct.Struct("<iIiIiI")
"""Offset and length of all, of the CONTEXT and of the XSTATE area; offsets count from the CONTEXT_EX."""
_XSTATE_HEADER: Final = struct.Struct("<QQ")
_NOTHING: Final = Image(bytes(MIN_SIZE), Layout.from_places(Format.STANDARD, ()), "format")
"""The image of every context without a state: read-only, and so shared."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Where things lie in one machine's CONTEXT, in bytes; ``fx_flag`` says that its FXSAVE area was stored.

    ``fsave`` is where x86 has FSAVE too, ``mxcsr`` where AMD64 has a second copy of MXCSR.
    """

    size: int
    flags: int
    machine_flag: int
    fxsave: int
    fx_flag: int
    fsave: int | None
    mxcsr: int | None


_SHAPES: Final[dict[str, Shape]] = {
    "x86-64": Shape(1232, 48, 0x100000, 256, _FLOATING_POINT, None, 52),
    "i386": Shape(716, 0, 0x10000, 204, _EXTENDED_REGISTERS, 28, None),
}


@dataclass(frozen=True, slots=True)
class Context:
    """A context understood: its image, and what there is to say about it."""

    image: Image
    findings: tuple[Finding, ...]


def read_context(
    data: bytes, machine: Literal["x86-64", "i386"], config: XstateConfig | None, cpu: Cpu | None
) -> Context:
    """Return the state in a CONTEXT and in what lies behind it; no bytes at all are no state.

    The places of extended components are those that ``config`` states, else those of ``cpu``, else those on which
    all known processors agree. Raises ImageError, with the byte of ``data``, for what is no such context or
    contradicts itself, LayoutError, AmbiguousLayout.
    """
    if not data:
        return Context(_NOTHING, (_no_state(),))
    shape = _SHAPES[machine]
    flags = _flags(data, shape, machine)
    findings: tuple[Finding, ...] = ()
    if flags & shape.fx_flag and (overwritten := _overwritten(data, shape)):
        flags, findings = flags & ~shape.fx_flag, (overwritten,)
    if flags & _XSTATE and len(data) >= shape.size + _CONTEXT_EX.size:
        return Context(_extended(data, shape, flags, config, cpu), findings)
    if flags & _XSTATE:
        findings += (_dropped(len(data)),)
    if flags & shape.fx_flag:
        image = from_fxsave(data[shape.fxsave : shape.fxsave + LEGACY_SIZE])
        return Context(image, findings or (_legacy_only("x87 and SSE"),))
    if shape.fsave is not None and flags & _FLOATING_POINT:
        image = from_fsave(data[shape.fsave : shape.fsave + FSAVE_SIZE])
        return Context(image, (*findings, _legacy_only("x87")))
    return Context(_NOTHING, findings or (_no_state(),))


def _flags(data: bytes, shape: Shape, machine: str) -> int:
    if len(data) < shape.size:
        raise ImageError(
            f"a context of {len(data)} bytes, but CONTEXT has {shape.size} on {machine}",
            offset=len(data),
            found=len(data),
            expected=shape.size,
        )
    flags = int.from_bytes(data[shape.flags : shape.flags + 4], "little")
    if not flags & shape.machine_flag:
        raise ImageError(
            f"ContextFlags are {flags:#x}, without the {shape.machine_flag:#x} of {machine}",
            offset=shape.flags,
            found=flags,
            expected=flags | shape.machine_flag,
        )
    return flags


def _overwritten(data: bytes, shape: Shape) -> Finding | None:
    """Tell whether the FXSAVE area is of no use, which shows in the second copy of MXCSR (0 where it is not kept)."""
    if shape.mxcsr is None:
        return None
    at = shape.fxsave + MXCSR_AT
    copy, found = (int.from_bytes(data[start : start + 4], "little") for start in (shape.mxcsr, at))
    if copy in (0, found):
        return None
    return Finding(
        "SRC014",
        Severity.WARNING,
        f"MXCSR is {copy:#x} in the CONTEXT and {found:#x} in its FXSAVE area: that area was overwritten, or never"
        " written, and is left out",
        component=Component.SSE,
        register="mxcsr",
        offset=at,
        found=found,
        expected=copy,
        source="winnt.h, CONTEXT.MxCsr and CONTEXT.FltSave",
        help="whoever wrote the dump may have wiped it, to keep secrets",
    )


def _extended(data: bytes, shape: Shape, flags: int, config: XstateConfig | None, cpu: Cpu | None) -> Image:
    start, length = _xstate_place(data, shape)
    mask, compaction = _XSTATE_HEADER.unpack_from(data, start)
    legacy = LEGACY if flags & shape.fx_flag else 0
    extended = compaction & ~COMPACTED_BIT & ~LEGACY
    room = length + LEGACY_SIZE
    if compaction & COMPACTED_BIT:
        layout, layout_source = _compacted(extended, legacy, room, config, cpu)
    else:
        layout, layout_source = _standard(mask, legacy, room, config, cpu)
    if layout.size > room:
        raise ImageError(
            f"{mask_text(layout.mask & ~LEGACY)} needs {layout.size - LEGACY_SIZE} bytes, the XSTATE area has {length}",
            offset=start,
            found=length,
            expected=layout.size - LEGACY_SIZE,
        )
    if mask & ~LEGACY & ~layout.mask:
        raise ImageError(
            f"Mask {mask:#x} names components that the area has no room for: it holds {layout.mask:#x}",
            offset=start,
            found=mask,
            expected=mask & (layout.mask | LEGACY),
        )
    area = data[shape.fxsave : shape.fxsave + LEGACY_SIZE] if legacy else bytes(LEGACY_SIZE)
    header = _XSTATE_HEADER.pack(mask & ~LEGACY | legacy, layout.xcomp_bv).ljust(HEADER_SIZE, b"\0")
    rest = data[start + HEADER_SIZE : start + layout.size - LEGACY_SIZE]
    return Image(area + header + rest, layout, layout_source)


def _xstate_place(data: bytes, shape: Shape) -> tuple[int, int]:
    """Return where the XSTATE area lies, and its length, held against the bytes that are there."""
    offset, length = _CONTEXT_EX.unpack_from(data, shape.size)[4:]
    start = shape.size + offset
    if not (shape.size + _CONTEXT_EX.size <= start and length >= HEADER_SIZE and start + length <= len(data)):
        raise ImageError(
            f"CONTEXT_EX states an XSTATE area of {length} bytes at {start}, the context has {len(data)}",
            offset=shape.size + 16,
            found=start,
        )
    return start, length


def _compacted(
    extended: int, legacy: int, room: int, config: XstateConfig | None, cpu: Cpu | None
) -> tuple[Layout, str]:
    if config is not None and config.compacted and mask_of(*config.places) == extended:
        return _stated(Format.COMPACTED, config.places, legacy), "note"
    return compacted_layout(extended | legacy, room, cpu), "inferred" if cpu is None else "given"


def _standard(
    mask: int, legacy: int, room: int, config: XstateConfig | None, cpu: Cpu | None
) -> tuple[Layout, str]:
    if config is not None and not config.compacted:
        places = {n: (at, size) for n, (at, size) in config.places.items() if at + size <= room}
        return _stated(Format.STANDARD, places, legacy), "note"
    layout = infer(0, room, mask) if cpu is None else standard_layout(cpu, room)
    kept = {place.component: (place.offset, place.size) for place in layout.places if place.component > 1}
    return _stated(Format.STANDARD, kept, legacy), "inferred" if cpu is None else "given"


def _stated(format: Format, places: dict[int, tuple[int, int]], legacy: int) -> Layout:
    return Layout.from_places(format, _places(places, legacy))


def _places(places: dict[int, tuple[int, int]], legacy: int) -> Iterator[Place]:
    for component, place in LEGACY_PLACES.items():
        if legacy:
            yield Place(component, *place)
    for component, place in places.items():
        if place[0] < MIN_SIZE or sum(place) > 1 << 16:
            raise LayoutError(f"component {component} is stated to lie at {place[0]} with {place[1]} bytes")
        yield Place(component, *place)


def _dropped(length: int) -> Finding:
    return Finding(
        "SRC012",
        Severity.WARNING,
        f"ContextFlags say that there is extended state, but the context ends at byte {length}, before it: AVX and"
        " what else the thread used is not known",
        offset=length,
        source="MiniDumpWriteDump",
        help="MiniDumpWithAvxXStateContext keeps it",
    )


def _legacy_only(held: str) -> Finding:
    return Finding(
        "SRC004",
        Severity.NOTE,
        f"the context holds {held} of this thread alone: what else it used is not known",
    )


def _no_state() -> Finding:
    return Finding(
        "SRC003",
        Severity.WARNING,
        "the dump has no floating-point state of this thread: its registers are not known",
    )
