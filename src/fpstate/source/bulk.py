"""Many images of one layout at equal distances in one buffer, looked at where they lie.

Columns and NumPy arrays show the bytes as they are, and so leftovers where a component is absent: look at
``xstate_bv`` beside them. Images, and what ``fpstate.source.gather`` makes of them, go by XSTATE_BV.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from fpstate.arch.component import Component
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError, RegisterError, UnsupportedHere
from fpstate.image import Image
from fpstate.image.initial import MXCSR_BLOCK
from fpstate.image.register import register_named

if TYPE_CHECKING:
    from typing_extensions import Buffer

_C = Component
_HEADER: Final = {"xstate_bv": 512, "xcomp_bv": 520}
_ITEMS: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_ARRAYS: Final = (
    *(
        ("fctrl", _C.X87, 0, "<u2", ()),
        ("fstat", _C.X87, 2, "<u2", ()),
        ("ftag_abridged", _C.X87, 4, "u1", ()),
    ),
    *(("fop", _C.X87, 6, "<u2", ()), ("fip", _C.X87, 8, "<u8", ()), ("fdp", _C.X87, 16, "<u8", ())),
    *(
        ("st", _C.X87, 32, "u1", (8, 16)),
        ("xmm", _C.SSE, 0, "<u8", (16, 2)),
        ("ymmh", _C.AVX, 0, "<u8", (16, 2)),
    ),
    *(("bnd", _C.BNDREGS, 0, "<u8", (4, 2)), ("k", _C.OPMASK, 0, "<u8", (8,))),
    *(("zmmh", _C.ZMM_HI256, 0, "<u8", (16, 4)), ("zmm_16_31", _C.HI16_ZMM, 0, "<u8", (16, 8))),
    *(("pkru", _C.PKRU, 0, "<u4", ()), ("tilecfg", _C.TILECFG, 0, "u1", (64,))),
    *(("tmm", _C.TILEDATA, 0, "u1", (8, 16, 64)), ("apx", _C.APX, 0, "<u8", (16,))),
)
"""Fields of a NumPy record: name, component, offset in it, type and shape. Vectors are in lanes of 64 bits."""


class Bulk(Sequence[Image]):
    """``count`` images, each ``stride`` bytes behind the one before; a sequence of Images over the same bytes.

    ``stride`` is the layout's size if not given, ``count`` as many as there are. What lies between the images is
    never looked at. Raises ImageError where they reach beyond the buffer.
    """

    __slots__ = ("_count", "layout", "stride", "view")

    def __init__(
        self, buffer: Buffer, layout: Layout, *, stride: int | None = None, count: int | None = None
    ) -> None:
        self.view = memoryview(buffer).cast("B")
        self.layout = layout
        self.stride = layout.size if stride is None else stride
        if self.stride < layout.size:
            raise ImageError(
                f"images of {layout.size} bytes cannot lie {self.stride} bytes apart",
                found=self.stride,
                expected=layout.size,
            )
        room = max(0, (len(self.view) - layout.size) // self.stride + 1)
        self._count = room if count is None else count
        if not 0 <= self._count <= room:
            end = (self._count - 1) * self.stride + layout.size
            raise ImageError(
                f"{self._count} images need {end} bytes, the buffer has {len(self.view)}",
                offset=len(self.view),
                found=len(self.view),
                expected=end,
            )

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Bulk: ...
    def __getitem__(self, index: int | slice) -> Image | Bulk:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            if step < 1:
                raise ValueError("images cannot be taken backwards")
            count = len(range(start, stop, step))
            return Bulk(self.view[start * self.stride :], self.layout, stride=step * self.stride, count=count)
        if not -self._count <= index < self._count:
            raise IndexError(f"image {index} of {self._count}")
        start = index % self._count * self.stride
        return Image(self.view[start : start + self.layout.size], self.layout)

    def __iter__(self) -> Iterator[Image]:
        return (self[index] for index in range(self._count))

    def column(self, name: str) -> memoryview:
        """Return one register, or ``xstate_bv`` or ``xcomp_bv``, of all images: integers where they lie.

        What is written to it is written to the images. For registers of 1, 2, 4 or 8 bytes that lie in one piece.
        Raises RegisterError for others, and where the stride is no multiple of the register's size.
        """
        offset, size = self._place(name)
        if size not in _ITEMS or offset % size or self.stride % size:
            raise RegisterError(
                name,
                f"{size} bytes at byte {offset}, every {self.stride} bytes, are no column of integers",
                help="gather.vectors() puts vector registers together, numpy() gives arrays of anything",
            )
        end = offset + (self._count - 1) * self.stride + size if self._count else offset
        return self.view[offset:end].cast(_ITEMS[size])[:: self.stride // size]

    def numpy(self) -> Any:  # noqa: ANN401
        """Return a structured NumPy array over the same bytes, one record for each image, without copying.

        Fields are ``xstate_bv``, ``xcomp_bv``, ``mxcsr``, ``mxcsr_mask``, ``fctrl`` and so on, and rows of
        registers: ``st`` (slots of 16 bytes), ``xmm``, ``ymmh``, ``zmmh``, ``zmm_16_31``, ``k``, ``tmm``, ``apx``,
        those that the layout holds. Raises UnsupportedHere without NumPy.
        """
        try:
            numpy = importlib.import_module("numpy")
        except ImportError as error:
            raise UnsupportedHere(
                "NumPy is not installed", help="pip install numpy, or use column()"
            ) from error
        fields = [
            *((name, offset, "<u8", ()) for name, offset in _HEADER.items()),
            *((name, offset, "<u4", ()) for name, offset in (("mxcsr", 24), ("mxcsr_mask", 28))),
            *(
                (name, self.layout.offset(component) + offset, kind, shape)
                for name, component, offset, kind, shape in _ARRAYS
                if component in self.layout
            ),
        ]
        dtype = numpy.dtype(
            {
                "names": [name for name, _, _, _ in fields],
                "formats": [(kind, shape) for _, _, kind, shape in fields],
                "offsets": [offset for _, offset, _, _ in fields],
                "itemsize": self.layout.size,
            }
        )
        return numpy.ndarray((self._count,), dtype=dtype, buffer=self.view, strides=(self.stride,))

    def _place(self, name: str) -> tuple[int, int]:
        """Return where a register lies in each image, and its size."""
        if name in _HEADER:
            return _HEADER[name], 8
        register = register_named(name)
        if not register.held_by(self.layout) or len(register.parts) != 1 or register.name == "ftag":
            raise RegisterError(
                name, "not in one piece in this layout", help="gather.vectors() puts registers together"
            )
        (part,) = register.parts
        start = 0 if part.component == MXCSR_BLOCK else self.layout.offset(part.component)
        return start + part.offset + (24 if part.component == MXCSR_BLOCK else 0), part.size
