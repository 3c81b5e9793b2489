"""Raw bytes: one state with nothing around it, or a buffer of which the kind shows in its length and its words.

Bytes do not say which processor made them. ``--cpu`` and ``--layout`` do, a compacted header does in part, and
where neither is there, only a length (with XCR0, if the software bytes hold one) that leaves one known layout
is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fpstate.arch.component import COMPACTED_BIT, MIN_SIZE, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.errors import AmbiguousLayout, ImageError, LayoutError, SourceError
from fpstate.image import Image
from fpstate.image.finding import Finding, Severity
from fpstate.image.legacy import FSAVE_SIZE, FXSAVE_SIZE, from_fsave, from_fxsave
from fpstate.image.subject import SOFTWARE_AT, XCOMP_BV_AT, XSTATE_BV_AT
from fpstate.source.known_layout import (
    compacted_layout,
    inferred_layout,
    plausible_xcr0,
    standard_layout,
)
from fpstate.source.kvm_buffer import KVM_FPU_SIZE, KVM_XSAVE_SIZE, read_kvm_fpu, read_kvm_xsave
from fpstate.source.raw_format import FORMATS
from fpstate.source.reader import RAW_LONGEST
from fpstate.source.sigframe import is_frame, read_frame
from fpstate.source.stream import Stream
from fpstate.source.thread import ThreadState

LONGEST: Final = RAW_LONGEST
"""Bytes of a source that are read as raw."""


def raw_threads(
    stream: Stream, *, cpu: Cpu | None = None, format: str | None = None, layout: Layout | None = None
) -> list[ThreadState]:
    """Return the one state in a stream; see ``open_raw``. Raises SourceError for more than 1 MiB."""
    data = stream.read_at(0, LONGEST + 1)
    if len(data) > LONGEST:
        raise SourceError(stream.name, f"more than {LONGEST} bytes are no single state", offset=LONGEST)
    return open_raw(data, cpu=cpu, format=format, layout=layout, name=stream.name)


def open_raw(
    data: bytes,
    *,
    cpu: Cpu | None = None,
    format: str | None = None,
    layout: Layout | None = None,
    name: str = "raw bytes",
) -> list[ThreadState]:
    """Return the one state that bytes are, as a list of one.

    ``cpu`` made them, or ``layout`` is theirs; ``format``, one of ``raw_format.FORMATS``, is told from length and
    header where it is not given. ``name`` says in errors where the bytes came from.

    Raises SourceError, with the byte, for what is no such state or is cut short, and AmbiguousLayout where several
    known layouts fit.
    """
    format = format or format_of(data)
    if format not in FORMATS:
        raise SourceError(
            name, f"{format!r} is no format of raw bytes", help="formats: " + ", ".join(FORMATS)
        )
    try:
        if layout is not None:
            return [_laid_out(data, layout, format)]
        return [_READERS[format](data, cpu)]
    except AmbiguousLayout as error:
        raise AmbiguousLayout(f"{name}: {error}", error.candidates) from error
    except ImageError as error:
        raise SourceError(name, str(error), offset=error.offset, help=error.help) from error
    except LayoutError as error:
        raise SourceError(name, str(error), offset=0, help=error.help) from error


def format_of(data: bytes) -> str:
    """Return which of ``raw_format.FORMATS`` bytes are, by length, a signal frame's words, and the header."""
    by_length = {FSAVE_SIZE: "fsave", FXSAVE_SIZE: "fxsave", KVM_FPU_SIZE: "kvm-fpu"}
    if len(data) in by_length:
        return by_length[len(data)]
    if is_frame(data):
        return "sigframe"
    if _word(data, XCOMP_BV_AT) & COMPACTED_BIT:
        return "compacted"
    kvm = len(data) == KVM_XSAVE_SIZE and plausible_xcr0(_word(data, SOFTWARE_AT))
    return "kvm-xsave" if kvm else "std"


def image_state(data: bytes, layout: Layout, layout_source: str, xcr0: int | None = None) -> ThreadState:
    """Return the state at the start of bytes; more bytes are a finding, fewer raise ImageError."""
    if len(data) < layout.size:
        raise ImageError(
            f"{len(data)} bytes, but {mask_text(layout.mask)} {layout.format.value} needs {layout.size}",
            offset=len(data),
            found=len(data),
            expected=layout.size,
        )
    findings = () if len(data) == layout.size else (_behind(len(data), layout.size),)
    return ThreadState(None, Image(data[: layout.size], layout, layout_source), xcr0=xcr0, findings=findings)


def _standard(data: bytes, cpu: Cpu | None) -> ThreadState:
    _check_length(data)
    if cpu is not None:
        return image_state(data, standard_layout(cpu, len(data)), "given")
    xcr0 = _word(data, SOFTWARE_AT)
    layout, used = inferred_layout(xcr0, len(data), _word(data, XSTATE_BV_AT))
    return image_state(data, layout, "inferred", xcr0 if used else None)


def _compacted(data: bytes, cpu: Cpu | None) -> ThreadState:
    _check_length(data)
    layout = compacted_layout(_word(data, XCOMP_BV_AT), len(data), cpu)
    return image_state(data, layout, "inferred" if cpu is None else "given")


def _laid_out(data: bytes, layout: Layout, format: str) -> ThreadState:
    """Read an image in a layout that the caller states; buffers with anything around an image are not for it."""
    _check_length(data)
    kind = Format.COMPACTED if format == "compacted" else Format.STANDARD
    if format not in ("std", "compacted", "kvm-xsave") or kind is not layout.format:
        raise ImageError(
            f"the layout is {layout.format.value}, the bytes are {format}",
            offset=XCOMP_BV_AT,
            help="leave the layout out, or state the format that it is for",
        )
    return image_state(data, layout, "given")


def _check_length(data: bytes) -> None:
    if len(data) < MIN_SIZE:
        raise ImageError(
            f"{len(data)} bytes are no state: FSAVE has {FSAVE_SIZE}, FXSAVE {FXSAVE_SIZE}, XSAVE {MIN_SIZE} or more",
            offset=len(data),
            found=len(data),
            expected=MIN_SIZE,
        )


def _behind(length: int, size: int) -> Finding:
    return Finding(
        "SRC006",
        Severity.NOTE,
        f"{length - size} bytes behind the {size} of the image are no part of it",
        offset=size,
        found=length,
        expected=size,
    )


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


_READERS: Final[dict[str, Callable[[bytes, Cpu | None], ThreadState]]] = {
    "std": _standard,
    "compacted": _compacted,
    "fxsave": lambda data, _: ThreadState(None, from_fxsave(data)),
    "fsave": lambda data, _: ThreadState(None, from_fsave(data), "i386"),
    "sigframe": read_frame,
    "kvm-xsave": read_kvm_xsave,
    "kvm-fpu": lambda data, _: read_kvm_fpu(data),
}
