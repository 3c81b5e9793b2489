"""The extended state of a signal frame, with what sigreturn will make of it.

A 64-bit frame has an XSAVE image with ``struct _fpx_sw_bytes`` at byte 464 and a second magic word behind it.
An i386 frame begins with 112 bytes: FSAVE, a status and a magic word; the registers there win on return.

Sources: Linux ``arch/x86/kernel/fpu/signal.c`` (``check_xstate_in_sigframe``, ``__fpu_restore_sig``),
``arch/x86/include/uapi/asm/sigcontext.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from fpstate.arch.component import (
    LEGACY,
    LEGACY_SIZE,
    MIN_SIZE,
    Component,
    component_name,
    components_in,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import AmbiguousLayout, ImageError, LayoutError
from fpstate.image import Image
from fpstate.image.finding import Finding, Severity
from fpstate.image.legacy import FSAVE_SIZE, from_fsave, from_fxsave
from fpstate.image.subject import FRAME, MAGIC1, MAGIC2, MAGIC2_SIZE, SOFTWARE_AT, XSTATE_BV_AT, Frame
from fpstate.source.inference import KNOWN, infer, layout_of
from fpstate.source.known_layout import standard_layout
from fpstate.source.thread import ThreadState

I386_HEADER_SIZE: Final = 112
"""``struct fregs_state`` of an i386 frame: FSAVE, then 16 bits of status and 16 of magic."""

_STATUS_AT: Final = FSAVE_SIZE
_FXSR_FOLLOWS, _NOTHING_FOLLOWS = 0, 0xFFFF
_SOURCE: Final = "Linux check_xstate_in_sigframe"
_X87_NAMES: Final = ("fctrl", "fstat", "fop", "fip", "fdp", *(f"st{n}" for n in range(8)), "ftag_abridged")
"""The tag comes last: writing a register of the stack marks it as in use."""


def is_frame(data: bytes) -> bool:
    """Tell whether bytes have the first magic word where a 64-bit or an i386 frame has it."""
    return _has_magic(data, 0) or (
        _header_magic(data) == _FXSR_FOLLOWS and _has_magic(data, I386_HEADER_SIZE)
    )


def read_frame(data: bytes, cpu: Cpu | None = None) -> ThreadState:
    """Return the state in a signal frame, 64-bit or i386, whichever its magic words say.

    The layout is that of ``cpu``, else the one known layout for ``xfeatures`` and ``xstate_size``. Where the kernel
    would take the frame for FXSAVE alone, because its words do not say where the rest ends, only that is read.
    Findings tell what sigreturn initialises. Raises ImageError for what is cut short, LayoutError, AmbiguousLayout.
    """
    if _has_magic(data, 0):
        return _read_area(data, cpu)
    magic = _header_magic(data)
    if magic == _NOTHING_FOLLOWS and len(data) < LEGACY_SIZE:
        return ThreadState(None, from_fsave(data[:FSAVE_SIZE]), "i386")
    if magic == _FXSR_FOLLOWS and (len(data) < MIN_SIZE or _has_magic(data, I386_HEADER_SIZE)):
        return _read_i386(data, cpu)
    return _read_area(data, cpu)


def _read_area(data: bytes, cpu: Cpu | None) -> ThreadState:
    if len(data) < LEGACY_SIZE:
        raise ImageError(
            f"{len(data)} bytes, fewer than the {LEGACY_SIZE} of the legacy region",
            offset=len(data),
            found=len(data),
            expected=LEGACY_SIZE,
        )
    frame = Frame(*FRAME.unpack_from(data, SOFTWARE_AT))
    if doubt := _doubt(frame):
        return ThreadState(None, from_fxsave(data[:LEGACY_SIZE]), findings=(doubt,))
    size = frame.xstate_size
    if size > len(data):
        raise ImageError(
            f"{len(data)} bytes, but xstate_size says {size}",
            offset=len(data),
            found=len(data),
            expected=size,
            help="the frame was cut short",
        )
    xstate_bv = int.from_bytes(data[XSTATE_BV_AT : XSTATE_BV_AT + 8], "little")
    findings = [*_second_magic(data, frame), *_not_asked_for(frame, xstate_bv)]
    layout = _reaching_behind(data, frame, cpu)
    behind = [] if layout is None else list(_behind_end(frame, xstate_bv, layout))
    findings += behind
    if layout is None or not behind:
        layout = standard_layout(cpu, size) if cpu else _infer(frame, xstate_bv)
        layout = Layout.from_places(layout.format, layout.places, size=size) if layout.size < size else layout
    image = Image(data[: layout.size], layout, "given" if cpu else "inferred")
    return ThreadState(None, image, xcr0=frame.xfeatures, findings=tuple(findings))


def _read_i386(data: bytes, cpu: Cpu | None) -> ThreadState:
    area = _read_area(data[I386_HEADER_SIZE:], cpu)
    header = from_fsave(data[:FSAVE_SIZE])
    image = area.image.copy()
    if any(header.registers.canonical(name) != image.registers.canonical(name) for name in _X87_NAMES):
        for name in _X87_NAMES:
            image.registers[name] = header.registers[name]
        area = replace(area, findings=(*area.findings, _header_wins()))
    return replace(area, image=image, machine="i386")


def _infer(frame: Frame, xstate_bv: int) -> Layout:
    """Return the known layout for what the frame states, or for its size alone where it asks for other components."""
    try:
        return infer(frame.xfeatures, frame.xstate_size)
    except AmbiguousLayout:
        raise
    except LayoutError as reason:
        try:
            return infer(0, frame.xstate_size, xstate_bv)
        except AmbiguousLayout:
            raise
        except LayoutError:
            raise reason from None


def _reaching_behind(data: bytes, frame: Frame, cpu: Cpu | None) -> Layout | None:
    """Return the layout of what the frame asks for, where that goes past its own end and the bytes are there."""
    mask = frame.xfeatures | LEGACY
    if cpu:
        layout = Layout.standard(cpu, mask & cpu.user_mask)
    else:
        known = {layout_of(each.places, mask) for each in KNOWN if not mask & ~each.xcr0}
        if len(known) != 1:
            return None
        (layout,) = known
    return layout if frame.xstate_size < layout.size <= len(data) else None


def _behind_end(frame: Frame, xstate_bv: int, layout: Layout) -> Iterator[Finding]:
    for place in layout.places:
        if xstate_bv >> place.component & 1 and place.end > frame.xstate_size:
            yield Finding(
                "SRC018",
                Severity.WARNING,
                f"{component_name(place.component)} ends at {place.end}, the frame at {frame.xstate_size}: what lies"
                " behind it is shown, and loaded by sigreturn where the task has the component",
                component=place.component,
                offset=SOFTWARE_AT + 16,
                found=frame.xstate_size,
                expected=place.end,
                source="Linux restore_fpregs_from_user",
            )


def _doubt(frame: Frame) -> Finding | None:
    """Return why the kernel would not look at more than the FXSAVE part, wherever it runs."""
    size, extended = frame.xstate_size, frame.extended_size
    if frame.magic1 != MAGIC1:
        return _fx_only("magic1", SOFTWARE_AT, frame.magic1, MAGIC1)
    if size < MIN_SIZE:
        return _fx_only("xstate_size", SOFTWARE_AT + 16, size, MIN_SIZE)
    if size > extended:
        return _fx_only("xstate_size, more than extended_size,", SOFTWARE_AT + 16, size, extended)
    return None


def _fx_only(word: str, offset: int, found: int, expected: int, kept: str = "is read") -> Finding:
    return Finding(
        "SRC007",
        Severity.WARNING,
        f"{word} is {found:#x}, not {expected:#x}: sigreturn loads the FXSAVE part alone and initialises all else;"
        f" no more than that {kept}",
        offset=offset,
        found=found,
        expected=expected,
        source=_SOURCE,
    )


def _second_magic(data: bytes, frame: Frame) -> Iterator[Finding]:
    at = frame.xstate_size
    if len(data) < at + MAGIC2_SIZE:
        yield Finding(
            "SRC007",
            Severity.WARNING,
            f"the second magic word, at byte {at}, is not among the {len(data)} bytes: if the frame lacks it too,"
            " sigreturn loads the FXSAVE part alone and initialises all else",
            offset=at,
            expected=MAGIC2,
            source=_SOURCE,
        )
        return
    found = int.from_bytes(data[at : at + MAGIC2_SIZE], "little")
    if found != MAGIC2:
        yield Finding(
            "SRC007",
            Severity.WARNING,
            f"the second magic word is {found:#x}, not {MAGIC2:#x}: sigreturn loads the FXSAVE part alone; the extended"
            " components that are shown here will be initialised",
            offset=at,
            found=found,
            expected=MAGIC2,
            source=_SOURCE,
        )


def _not_asked_for(frame: Frame, xstate_bv: int) -> Iterator[Finding]:
    for number in components_in(xstate_bv & ~frame.xfeatures):
        yield Finding(
            "SRC008",
            Severity.WARNING,
            f"{component_name(number)} is there, but xfeatures asks for {mask_text(frame.xfeatures)} alone:"
            " sigreturn will initialise it",
            component=number,
            offset=SOFTWARE_AT + 8,
            found=frame.xfeatures,
            expected=frame.xfeatures | 1 << number,
            source="Linux __fpu_restore_sig",
        )


def _header_wins() -> Finding:
    return Finding(
        "SRC009",
        Severity.NOTE,
        "the x87 registers differ between the FSAVE header and the FXSAVE area: shown are the header's, which win",
        component=Component.X87,
        source="Linux convert_to_fxsr",
    )


def _has_magic(data: bytes, start: int) -> bool:
    at = start + SOFTWARE_AT
    return data[at : at + 4] == MAGIC1.to_bytes(4, "little")


def _header_magic(data: bytes) -> int | None:
    """Return the magic of an i386 header; None for bytes that have none: its status repeats FSW."""
    if len(data) < I386_HEADER_SIZE:
        return None
    status, magic = struct.unpack_from("<HH", data, _STATUS_AT)
    (stored,) = struct.unpack_from("<H", data, 4)
    return int(magic) if status == stored else None
