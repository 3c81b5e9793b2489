"""CRIU's ``core-TID.img``: the state of one thread as fields of protobuf messages, without any layout.

The fields name the components, so the image made of them has a layout of its own, in which they follow each
other. CRIU stores every component that the host has, whether in use or not; XSTATE_BV tells what counts.

Sources: CRIU ``criu/include/magic.h``, ``criu/image.c`` (magic words), ``criu/arch/x86/crtools.c``
(``save_task_regs``, ``restore_fpu``).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from fpstate.arch.component import (
    COMPONENTS,
    HEADER_SIZE,
    LEGACY,
    LEGACY_PLACES,
    LEGACY_SIZE,
    MIN_SIZE,
    Component,
    component_name,
    components_in,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout, Place
from fpstate.errors import SourceError
from fpstate.image import Image
from fpstate.image.finding import Finding, Severity
from fpstate.source.criu_schema import core_entry, decode_error
from fpstate.source.reader import MESSAGE_LONGEST
from fpstate.source.stream import Stream, read_exactly
from fpstate.source.thread import Machine, ThreadState

COMMON_MAGIC: Final = 0x54564319
"""IMG_COMMON_MAGIC, before the image's own magic since CRIU 2.0."""
CORE_MAGIC: Final = 0x55053847
MESSAGE_LIMIT: Final = MESSAGE_LONGEST
"""Bytes of a message that are parsed."""

_WORD: Final = struct.Struct("<I")
_CONTROL: Final = struct.Struct("<HHHHQQII")
"""cwd, swd, twd, fop, rip, rdp, mxcsr and mxcsr_mask, as FXSAVE64 has them."""
_CONTROL_LIMITS: Final = {"cwd": 1 << 16, "swd": 1 << 16, "twd": 1 << 16, "fop": 1 << 16}
_CONTROL_NAMES: Final = ("cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask")
_X86_64: Final = 1
_COMPAT: Final = 2
_FILE_NAME: Final = re.compile(r"core-(\d{1,9})\.img(?:\.\w+)?")
_C = Component


@dataclass(frozen=True, slots=True)
class _Field:
    """A repeated field that holds a component: ``width`` bytes each, ``count`` of them."""

    name: str
    component: int
    width: int
    count: int


_FIELDS: Final = (
    _Field("ymmh_space", _C.AVX, 4, 64),
    _Field("bndreg_state", _C.BNDREGS, 8, 8),
    _Field("bndcsr_state", _C.BNDCSR, 8, 8),
    _Field("opmask_reg", _C.OPMASK, 8, 8),
    _Field("zmm_upper", _C.ZMM_HI256, 8, 64),
    _Field("hi16_zmm", _C.HI16_ZMM, 8, 128),
    _Field("pkru", _C.PKRU, 4, 2),
)
_STACK, _XMM = _Field("st_space", _C.X87, 4, 32), _Field("xmm_space", _C.SSE, 4, 64)


def criu_threads(stream: Stream, *, cpu: Cpu | None = None) -> list[ThreadState]:
    """Return the state of the one thread in a core image, numbered as the file's name says.

    ``cpu`` is not needed: the fields leave no choice (``"format"``). Raises SourceError, with the byte, for what
    is damaged or of another machine, and UnsupportedHere without protobuf.
    """
    start, size = _message_place(stream)
    entry = core_entry()()
    data = read_exactly(stream, start, size, "the message")
    try:
        entry.ParseFromString(data)
    except decode_error() as error:
        raise SourceError(stream.name, f"no core_entry message: {error}", offset=start) from error
    if entry.mtype != _X86_64:
        raise SourceError(stream.name, f"of machine type {entry.mtype}, not X86_64 (1)", offset=start)
    if not entry.thread_info.HasField("fpregs"):
        raise SourceError(stream.name, "no floating-point state (thread_info.fpregs)", offset=start)
    named = _FILE_NAME.fullmatch(PurePath(stream.name).name)
    machine: Machine = "i386" if entry.thread_info.gpregs.mode == _COMPAT else "x86-64"
    try:
        image = _image(entry.thread_info.fpregs)
    except _FieldError as error:
        raise SourceError(stream.name, str(error), offset=start) from error
    return [
        ThreadState(
            int(named[1]) if named else None,
            image,
            machine,
            name=entry.tc.comm.decode("utf-8", "replace"),
            findings=tuple(_findings(entry.thread_info.fpregs, image)),
        )
    ]


class _FieldError(ValueError):
    """A field has more or fewer entries than its component has room for."""


def _message_place(stream: Stream) -> tuple[int, int]:
    """Return where the first message begins and its size, which stands before it."""
    at, magic = 0, _word(stream, 0, "the magic word")
    if magic == COMMON_MAGIC:
        at, magic = 4, _word(stream, 4, "the second magic word")
    if magic != CORE_MAGIC:
        raise SourceError(
            stream.name, f"magic word {magic:#x}, not that of a CRIU core image {CORE_MAGIC:#x}", offset=at
        )
    size = _word(stream, at + 4, "the size of the message")
    if size > MESSAGE_LIMIT or (stream.size is not None and at + 8 + size > stream.size):
        raise SourceError(
            stream.name,
            f"a message that claims {size} bytes, more than the file has or than any such message needs",
            offset=at + 4,
        )
    return at + 8, size


def _image(registers: Any) -> Image:  # noqa: ANN401 - a protobuf message
    area = bytearray(LEGACY_SIZE)
    values = [getattr(registers, name) for name in _CONTROL_NAMES]
    for name, value in zip(_CONTROL_NAMES, values, strict=True):
        if value >= _CONTROL_LIMITS.get(name, 1 << 64):
            raise _FieldError(f"{name} is {value:#x}, more than 16 bits")
    _CONTROL.pack_into(area, 0, *values)
    area[32:160] = _bytes(registers, _STACK) or bytes(128)
    area[160:416] = _bytes(registers, _XMM) or bytes(256)
    parts = {field.component: data for field in _FIELDS if (data := _bytes(registers.xsave, field))}
    if registers.xsave.HasField("cet"):
        parts[_C.CET_U] = struct.pack("<QQ", registers.xsave.cet.cet, registers.xsave.cet.ssp)
    layout = Layout.from_places(Format.COMPACTED, _places(parts))
    present = registers.xsave.xstate_bv & layout.mask | LEGACY
    header = struct.pack("<QQ", present, layout.xcomp_bv).ljust(HEADER_SIZE, b"\0")
    return Image(bytes(area) + header + b"".join(parts.values()), layout, "format")


def _places(parts: dict[int, bytes]) -> Iterator[Place]:
    yield from (Place(component, *place) for component, place in LEGACY_PLACES.items())
    cursor = MIN_SIZE
    for component, data in parts.items():
        yield Place(component, cursor, len(data))
        cursor += len(data)


def _bytes(message: Any, field: _Field) -> bytes:  # noqa: ANN401 - a protobuf message
    values = getattr(message, field.name)
    if not values:
        return b""
    if len(values) != field.count:
        raise _FieldError(f"{field.name} has {len(values)} entries, not {field.count}")
    return b"".join(value.to_bytes(field.width, "little") for value in values)


def _findings(registers: Any, image: Image) -> Iterator[Finding]:  # noqa: ANN401 - a protobuf message
    if not registers.HasField("xsave"):
        yield Finding(
            "SRC004",
            Severity.NOTE,
            "the image holds x87 and SSE of this thread alone: what else it used is not known",
        )
    for number in components_in(registers.xsave.xstate_bv & ~image.layout.mask):
        yield Finding(
            "SRC015",
            Severity.WARNING,
            f"{component_name(number)} was in use, and CRIU did not store it: its registers are not known",
            component=number,
            register=COMPONENTS[number].fields[0].name if number in COMPONENTS else None,
            source="CRIU images/core-x86.proto",
        )


def _word(stream: Stream, offset: int, what: str) -> int:
    return int(_WORD.unpack(read_exactly(stream, offset, _WORD.size, what))[0])
