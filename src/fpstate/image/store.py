"""The bytes of an image's components, with the one rule that matters: absent means initial.

Whether a component is there says XSTATE_BV (SDM Vol.1 13.4.2). Bytes behind a clear bit are leftovers: they
are never read, and before the bit is set they are overwritten.
"""

from __future__ import annotations

import struct
from typing import Final

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY_SIZE,
    Component,
    mask_text,
)
from fpstate.arch.layout import Format, Layout
from fpstate.errors import ImageError
from fpstate.image.initial import MXCSR_BLOCK, initial_bytes

XSTATE_BV_OFFSET: Final = LEGACY_SIZE
XCOMP_BV_OFFSET: Final = LEGACY_SIZE + 8
RESERVED_OFFSET: Final = LEGACY_SIZE + 16
_BITMAPS: Final = struct.Struct("<QQ")
_MXCSR_PLACE: Final = (24, 8)
_X87_REGIONS: Final = ((0, 24), (32, 128))  # not MXCSR_BLOCK, which lies between them


class ComponentStore:
    """Reads and writes parts of components in a buffer of ``layout.size`` bytes, without copying it.

    Raises ImageError when the buffer's length is not that of the layout.
    """

    __slots__ = ("_mxcsr_carriers", "_places", "layout", "view")

    def __init__(self, data: bytes | bytearray | memoryview, layout: Layout) -> None:
        view = memoryview(data).cast("B")
        if len(view) != layout.size:
            raise ImageError(
                f"{len(view)} bytes, but an image in this {layout.format.value} layout of"
                f" {mask_text(layout.mask)} has {layout.size}",
                offset=min(len(view), layout.size),
                found=len(view),
                expected=layout.size,
                help="pass exactly the image, and the layout of the processor that made it",
            )
        self.layout = layout
        self.view = view
        self._places = {place.component: (place.offset, place.size) for place in layout.places}
        standard = layout.format is Format.STANDARD
        carriers = (Component.SSE, Component.AVX) if standard else (Component.SSE,)
        self._mxcsr_carriers = tuple(int(carrier) for carrier in carriers if carrier in layout)
        if self._mxcsr_carriers:
            self._places[MXCSR_BLOCK] = _MXCSR_PLACE

    def bitmaps(self) -> tuple[int, int]:
        """Return XSTATE_BV and XCOMP_BV as they stand in the header, legal or not."""
        xstate_bv, xcomp_bv = _BITMAPS.unpack_from(self.view, XSTATE_BV_OFFSET)
        return xstate_bv, xcomp_bv

    def xstate_bv(self) -> int:
        """Return XSTATE_BV of a header that agrees with the layout; raises ImageError where it does not."""
        xstate_bv, xcomp_bv = self.bitmaps()
        if xcomp_bv != self.layout.xcomp_bv:
            raise self._xcomp_bv_error(xcomp_bv)
        if xstate_bv & ~self.layout.mask:
            raise ImageError(
                f"XSTATE_BV at byte {XSTATE_BV_OFFSET} is {xstate_bv:#x},"
                f" the layout holds {self.layout.mask:#x}: no room for {xstate_bv & ~self.layout.mask:#x}",
                offset=XSTATE_BV_OFFSET,
                found=xstate_bv,
                expected=xstate_bv & self.layout.mask,
                help="the layout may be that of another processor or of another mask",
            )
        return xstate_bv

    def holds(self, component: int, end: int) -> bool:
        """Tell whether the layout has room for a component's first ``end`` bytes."""
        place = self._places.get(component)
        return place is not None and end <= place[1]

    def present(self, component: int) -> bool:
        """Tell whether the image itself states this component, rather than leaving it initial.

        MXCSR is there when SSE is, and in the standard format when AVX is too: SDM Vol.1 13.8.1, Linux
        ``xfeatures_mxcsr_quirk``.
        """
        xstate_bv = self.xstate_bv()
        if component == MXCSR_BLOCK:
            return any(xstate_bv >> carrier & 1 for carrier in self._mxcsr_carriers)
        return bool(xstate_bv >> component & 1)

    def read(self, component: int, offset: int, size: int) -> bytes:
        """Return a part of a component; what is absent, or beyond the room it has here, reads as initial."""
        if not self.present(component):
            return initial_bytes(component, offset, size)
        start, room = self._places[component]
        stored = bytes(self.view[start + offset : start + min(offset + size, room)])
        missing = size - len(stored)
        return stored + initial_bytes(component, offset + len(stored), missing) if missing else stored

    def read_all(self, component: int) -> bytes:
        """Return all the bytes that the component has in this layout; it must be held."""
        return self.read(component, 0, self._places[component][1])

    def write(self, component: int, offset: int, data: bytes) -> None:
        """Write a part of a component that is held, after making it present."""
        if component == MXCSR_BLOCK:
            if data == self.read(component, offset, len(data)) == initial_bytes(component, offset, len(data)):
                return
            self.activate(self._mxcsr_carriers[0])
        else:
            self.activate(component)
        start = self._places[component][0] + offset
        self.view[start : start + len(data)] = data

    def activate(self, component: int) -> None:
        """Set a component's XSTATE_BV bit; if it was clear, make its bytes initial first."""
        xstate_bv = self.xstate_bv()
        if xstate_bv >> component & 1:
            return
        start, size = self._places[component]
        regions = _X87_REGIONS if component == Component.X87 else ((0, size),)
        for offset, length in regions:
            self._initialise(component, start, offset, length)
        if component in self._mxcsr_carriers and not self.present(MXCSR_BLOCK):
            self._initialise(MXCSR_BLOCK, _MXCSR_PLACE[0], 0, _MXCSR_PLACE[1])
        _BITMAPS.pack_into(self.view, XSTATE_BV_OFFSET, xstate_bv | 1 << component, self.layout.xcomp_bv)

    def _initialise(self, component: int, start: int, offset: int, size: int) -> None:
        self.view[start + offset : start + offset + size] = initial_bytes(component, offset, size)

    def _xcomp_bv_error(self, found: int) -> ImageError:
        expected = self.layout.xcomp_bv
        if (found ^ expected) & COMPACTED_BIT:
            stated = "compacted" if found & COMPACTED_BIT else "standard"
            reason = f"the header is {stated}, the layout {self.layout.format.value}"
        else:
            reason = "the header and the layout lay out different components"
        return ImageError(
            f"XCOMP_BV at byte {XCOMP_BV_OFFSET} is {found:#x}, the layout needs {expected:#x}: {reason}",
            offset=XCOMP_BV_OFFSET,
            found=found,
            expected=expected,
            help="take the layout from the producer of the image",
        )
