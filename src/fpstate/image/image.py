"""One saved state: bytes, the layout that says what they mean, and where that layout was learnt."""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import MIN_SIZE
from fpstate.arch.layout import Layout
from fpstate.image.canonical import CanonicalState, canonical_state
from fpstate.image.control import FCW_INIT, MXCSR_INIT
from fpstate.image.registers import Registers
from fpstate.image.store import XCOMP_BV_OFFSET, ComponentStore

_RESERVED: Final = slice(XCOMP_BV_OFFSET + 8, MIN_SIZE)
_FCW: Final = slice(0, 2)
_MXCSR: Final = slice(24, 28)
_XCOMP_BV: Final = slice(XCOMP_BV_OFFSET, XCOMP_BV_OFFSET + 8)


class Image:
    """An XSAVE image: a buffer of ``layout.size`` bytes and its Layout.

    ``bytes`` give a read-only image; a bytearray or a writable memoryview gives one that shows and changes
    that very buffer. ``layout_source`` says how the layout came to be known (``"given"``, a note, a guess).

    Images are equal when their registers are, whatever their layouts, formats and in-use bitmaps; see
    ``canonical``. Read-only images can be hashed.

    Raises ImageError when the length is not the layout's. A header that contradicts the layout raises it as
    soon as anything is decoded, but not before, so that illegal images can be looked at.
    """

    __slots__ = ("layout", "layout_source", "store")

    def __init__(
        self, data: bytes | bytearray | memoryview, layout: Layout, layout_source: str = "given"
    ) -> None:
        self.store = ComponentStore(data, layout)
        self.layout = layout
        self.layout_source = layout_source

    @classmethod
    def initial(cls, layout: Layout, layout_source: str = "given") -> Image:
        """Return a new writable image in which every component is absent, and so initial.

        FCW, MXCSR and the header are stated all the same, for consumers that look no further.
        """
        data = bytearray(layout.size)
        data[_FCW] = FCW_INIT.to_bytes(2, "little")
        data[_MXCSR] = MXCSR_INIT.to_bytes(4, "little")
        data[_XCOMP_BV] = layout.xcomp_bv.to_bytes(8, "little")
        return cls(data, layout, layout_source)

    def copy(self) -> Image:
        """Return a writable image over a copy of the bytes."""
        return Image(bytearray(self.store.view), self.layout, self.layout_source)

    def to_bytes(self) -> bytes:
        """Return the bytes as they are, leftovers behind clear XSTATE_BV bits included."""
        return bytes(self.store.view)

    @property
    def readonly(self) -> bool:
        """Whether registers cannot be assigned because the buffer cannot be written."""
        return self.store.view.readonly

    @property
    def xstate_bv(self) -> int:
        """The header's bitmap of components that the image states, as it stands."""
        return self.store.bitmaps()[0]

    @property
    def xcomp_bv(self) -> int:
        """The header's bitmap of the compacted layout with bit 63, or 0, as it stands."""
        return self.store.bitmaps()[1]

    @property
    def reserved(self) -> bytes:
        """The header's 48 reserved bytes, 528 to 575; legal images have zeros there."""
        return bytes(self.store.view[_RESERVED])

    @property
    def in_use(self) -> int:
        """Bitmap of the components whose registers are not initial, whatever XSTATE_BV says.

        Bit 1 is set for an MXCSR other than 1F80H too. FOP, FIP and FDP count only where they mean anything.
        """
        return self.canonical().mask

    @property
    def registers(self) -> Registers:
        """The registers by name, a view of this image."""
        return Registers(self)

    def canonical(self, *, exact: bool = False) -> CanonicalState:
        """Return the value by which images are compared: hashable, and independent of the layout.

        Absent components are initial. MXCSR comes from memory when SSE, or in the standard format AVX, is
        present, and is 1F80H otherwise; XSAVE in the standard format states an MXCSR even where neither is,
        and whoever means that one sets the SSE bit. ES and B are recomputed. FOP, FIP and FDP count only
        while an unmasked x87 exception is pending, or always when ``exact`` is set.
        """
        return canonical_state(self.store, exact=exact)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self.canonical() == other.canonical()

    def __hash__(self) -> int:
        if not self.readonly:
            raise TypeError("a writable image cannot be hashed; hash its canonical() value")
        return hash(self.canonical())

    def __repr__(self) -> str:
        return (
            f"<Image of {self.layout.size} bytes, {self.layout.format.value} {self.layout.mask:#x}"
            f" ({self.layout_source}), XSTATE_BV={self.xstate_bv:#x}>"
        )
