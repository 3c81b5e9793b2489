"""The two formats from before XSAVE: FXSAVE (512 bytes: x87 and SSE) and FSAVE (108 bytes: x87 alone).

Sources: SDM Vol.1 8.1.10 (FSAVE, 32-bit protected mode), 10.5.1 (FXSAVE); Linux ``convert_from_fxsr``,
``convert_to_fxsr`` and ``struct user_i387_ia32_struct``. FSAVE images turn up as NT_PRFPREG of 32-bit
processes and, with four more bytes behind them, at the start of ia32 signal frames.
"""

from __future__ import annotations

import struct
from typing import Final

from fpstate.arch.component import HEADER_SIZE, LEGACY, LEGACY_PLACES, LEGACY_SIZE, Component
from fpstate.arch.layout import Format, Layout, Place
from fpstate.errors import ImageError
from fpstate.image.convert import convert
from fpstate.image.image import Image
from fpstate.image.tag import abridged_tag

FXSAVE_SIZE: Final = LEGACY_SIZE
FSAVE_SIZE: Final = 108
FXSAVE_LAYOUT: Final = Layout.from_places(
    Format.STANDARD, [Place(component, *place) for component, place in LEGACY_PLACES.items()]
)
"""What an FXSAVE image holds: x87 and SSE, with an XSAVE header behind them."""
FSAVE_LAYOUT: Final = Layout.from_places(
    Format.STANDARD, [Place(Component.X87, *LEGACY_PLACES[Component.X87])]
)
"""What an FSAVE image holds: x87 alone."""

_ENVIRONMENT: Final = struct.Struct("<HxxHxxHxxIHHIHxx")
"""FCW, FSW, tag word, FIP, CS, FOP, FDP, DS; what lies between is all ones on export, ignored on import."""
_ONES: Final = (2, 6, 10, 26)
_SLOTS: Final = range(32, 160, 16)
_VALUE_SIZE: Final = 10
_STACK: Final = range(_ENVIRONMENT.size, FSAVE_SIZE, _VALUE_SIZE)
_LOW_HALF: Final = 0xFFFFFFFF


def from_fxsave(data: bytes | bytearray | memoryview) -> Image:
    """Return a writable image of the 512 bytes that FXSAVE64 stored, with both components present.

    The bytes are copied as they are. FIP and FDP are read as 64 bits wide; images that were stored without
    REX.W have the selectors in the upper halves. Raises ImageError for any other length.
    """
    _check_length(data, FXSAVE_SIZE, "FXSAVE")
    header = LEGACY.to_bytes(8, "little").ljust(HEADER_SIZE, b"\0")
    return Image(bytearray(bytes(data) + header), FXSAVE_LAYOUT, "format")


def to_fxsave(image: Image) -> bytes:
    """Return x87 and SSE of an image as FXSAVE64 stores them; what else the image holds is left out.

    ``convert(image, FXSAVE_LAYOUT)`` tells what that is, and gives the image to pass here.
    """
    dropped = (Component.SSE, *(place.component for place in image.layout.places))
    return convert(image, FXSAVE_LAYOUT, drop=dropped).image.to_bytes()[:FXSAVE_SIZE]


def from_fsave(data: bytes | bytearray | memoryview) -> Image:
    """Return a writable image of the 108 bytes that FSAVE stored in 32-bit protected mode form, x87 alone.

    The full tag word becomes the abridged one. FIP and FDP are offsets of 32 bits; the selectors have no
    place in a 64-bit image and are not kept, see ``fsave_selectors``. Raises ImageError for any other length.
    """
    _check_length(data, FSAVE_SIZE, "FSAVE")
    control, status, tags, fip, _, fop, fdp, _ = _ENVIRONMENT.unpack_from(data)
    image = Image.initial(FSAVE_LAYOUT, "format")
    image.store.activate(Component.X87)
    view = image.store.view
    fields = control, status, abridged_tag(tags), fop, fip, fdp
    struct.pack_into("<HHBxHQQ", view, 0, *fields)
    for slot, start in zip(_SLOTS, _STACK, strict=True):
        view[slot : slot + _VALUE_SIZE] = data[start : start + _VALUE_SIZE]
    return image


def to_fsave(image: Image, *, cs: int = 0, ds: int = 0) -> bytes:
    """Return the x87 state of an image as FSAVE stores it in 32-bit protected mode, 108 bytes.

    The full tag word is made from the abridged one and the registers' contents, ES and B from flags and masks,
    as FXRSTOR and FNSAVE would make them. FIP and FDP keep their lower
    32 bits. A 64-bit image states no selectors: ``cs`` and ``ds`` are stored as they are passed (Linux passes
    those of the process). What is not x87 is left out; ``convert(image, FSAVE_LAYOUT, narrow_pointers=True)``
    tells what is lost. Raises ImageError where header and layout disagree.
    """
    registers = image.registers
    names = ("fctrl", "fstat", "ftag", "fop", "fip", "fdp")
    values = {name: registers.canonical(name, exact=True) for name in names}
    area = image.store.read(Component.X87, 0, _SLOTS.stop)
    data = bytearray(FSAVE_SIZE)
    offsets = values["fip"] & _LOW_HALF, values["fdp"] & _LOW_HALF
    words = values["fctrl"], values["fstat"], values["ftag"], offsets[0], cs, values["fop"], offsets[1], ds
    _ENVIRONMENT.pack_into(data, 0, *words)
    for offset in _ONES:
        data[offset : offset + 2] = b"\xff\xff"
    for slot, start in zip(_SLOTS, _STACK, strict=True):
        data[start : start + _VALUE_SIZE] = area[slot : slot + _VALUE_SIZE]
    return bytes(data)


def fsave_selectors(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return the selectors of FIP and FDP, CS and DS, in an FSAVE image; raises ImageError for its length."""
    _check_length(data, FSAVE_SIZE, "FSAVE")
    _, _, _, _, cs, _, _, ds = _ENVIRONMENT.unpack_from(data)
    return cs, ds


def _check_length(data: bytes | bytearray | memoryview, size: int, name: str) -> None:
    found = memoryview(data).nbytes
    if found != size:
        raise ImageError(
            f"{found} bytes, but an {name} image has {size}",
            offset=min(found, size),
            found=found,
            expected=size,
            help="an XSAVE image has at least 576 bytes and needs the layout of the processor that made it",
        )
