"""Moving the registers of many images at once, in native code: into arrays, other layouts, compacted groups.

Images are sorted into classes by XSTATE_BV. Each class has one list of moves, the very moves of ``convert``.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from fpstate.arch.component import Component, components_in, mask_of, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.errors import ImageError, LayoutError, UnsupportedHere
from fpstate.image import Image
from fpstate.image.move import Move, register_moves
from fpstate.image.register import REGISTERS
from fpstate.source.bulk import Bulk

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LINE: Final = 64
_HUGE: Final = 4 << 20
"""As many bytes are worth huge pages."""
_FORCED_SSE: Final = 1 << 63
"""In a key: AVX alone states an MXCSR that is not initial, and the compacted format needs the SSE bit for it."""
_SSE: Final = mask_of(Component.SSE)
_AVX: Final = mask_of(Component.AVX)
_AVX512: Final = mask_of(Component.ZMM_HI256, Component.HI16_ZMM)
_MXCSR: Final = (24, 24, 8)


@dataclass(frozen=True, slots=True)
class Group:
    """Images of one class, compacted alike; ``indices`` says which images of the source they are, in order."""

    images: Bulk
    indices: memoryview


@dataclass(frozen=True, slots=True)
class _Sorting:
    """What images are sorted by: XSTATE_BV bits, and whether an MXCSR that AVX alone states sets bit 63."""

    mask: int
    avx_carries_mxcsr: bool = False


@dataclass(frozen=True, slots=True)
class _Class:
    """Images with one key: how many, the bytes that their records start as, and the moves into these.

    ``stride`` is the distance of the records.
    """

    key: int
    count: int
    stride: int
    record: bytes
    moves: list[Move]


def vectors(bulk: Bulk, out: Buffer | None = None, *, stream: bool | None = None) -> memoryview:
    """Return all vector registers of all images as bytes of shape (images, registers, bytes of each).

    32 ZMM registers where the layout holds AVX-512, else 16 YMM where it holds AVX, else 16 XMM. What is absent is
    zero. ``out`` is written to if given, and has to have as many bytes or more. ``stream`` writes past the caches
    or not; if not given, the size decides. Raises ImageError for an illegal header, and UnsupportedHere without
    the native core.
    """
    registers, width = _vector_shape(bulk.layout)
    mask, record = bulk.layout.mask & (_SSE | _AVX | _AVX512), bytes(registers * width)
    classes = [
        _Class(key, len(bulk), len(record), record, _vector_moves(bulk.layout, width, key))
        for key in _subsets(mask)
    ]
    target = _room(out, len(bulk) * len(record))
    _gather(bulk, _Sorting(mask), classes, target, None, stream)
    return target.cast("B", (len(bulk), registers, width)) if len(bulk) else target


def converted(bulk: Bulk, layout: Layout, out: Buffer | None = None, *, stream: bool | None = None) -> Bulk:
    """Return the images in another layout, in the same order; each is what ``convert`` makes of it.

    They lie at multiples of 64 bytes in ``out``, or in new memory. Raises LayoutError where an image states a
    component for which the layout has less room, initial or not; else as ``vectors`` does.
    """
    sorting = _sorting(bulk.layout, layout)
    classes = [_conversion(bulk.layout, layout, key, len(bulk)) for key, _ in _sorted(bulk, sorting)]
    stride = _up(layout.size)
    target = _room(out, len(bulk) * stride)
    _gather(bulk, sorting, classes, target, None, stream)
    return Bulk(target, layout, stride=stride, count=len(bulk))


def compact(bulk: Bulk, cpu: Cpu, out: Buffer | None = None, *, stream: bool | None = None) -> list[Group]:
    """Return the images compacted to what they state, grouped by XSTATE_BV: as XSAVEC with that mask has them.

    One group for each class, in the order of its first image; in it the images of that class in order, at
    multiples of 64 bytes in ``out``, or in new memory; ``compact_size`` says how much room that takes. Raises
    LayoutError for components that ``cpu`` does not enumerate, else as ``vectors`` does.
    """
    layouts, classes = _compaction(bulk, cpu)
    target = _room(out, sum(each.count * each.stride for each in classes))
    indices = memoryview(bytearray(4 * len(bulk))).cast("I")
    _gather(bulk, _Sorting(bulk.layout.mask, _is_standard(bulk.layout)), classes, target, indices, stream)
    groups, start, first = [], 0, 0
    for layout, each in zip(layouts, classes, strict=True):
        end = start + each.count * each.stride
        images = Bulk(target[start:end], layout, stride=each.stride, count=each.count)
        groups.append(Group(images, indices[first : first + each.count]))
        start, first = end, first + each.count
    return groups


def compact_size(bulk: Bulk, cpu: Cpu) -> int:
    """Return the bytes that ``compact`` needs."""
    return sum(each.count * each.stride for each in _compaction(bulk, cpu)[1])


def _vector_shape(layout: Layout) -> tuple[int, int]:
    """Return how many vector registers a layout holds, and the bytes of each."""
    if layout.mask & _AVX512 == _AVX512:
        return 32, 64
    return (16, 32) if layout.mask & _AVX else (16, 16)


def _subsets(mask: int) -> list[int]:
    """Return every bitmap of some of these components: at most sixteen, as there are four kinds of vectors."""
    subsets = [0]
    for component in components_in(mask):
        subsets += [each | 1 << component for each in subsets]
    return subsets


def _vector_moves(layout: Layout, width: int, stated: int) -> list[Move]:
    moves = []
    for component, at, size in (
        (Component.SSE, 0, 16),
        (Component.AVX, 16, 16),
        (Component.ZMM_HI256, 32, 32),
    ):
        if stated >> component & 1 and at + size <= width:
            start = layout.offset(component)
            moves += [(start + size * index, width * index + at, size) for index in range(16)]
    if stated >> Component.HI16_ZMM & 1:
        moves.append((layout.offset(Component.HI16_ZMM), 16 * width, 16 * width))
    return moves


def _sorting(source: Layout, target: Layout) -> _Sorting:
    return _Sorting(source.mask, _is_standard(source) and not _is_standard(target))


def _compaction(bulk: Bulk, cpu: Cpu) -> tuple[list[Layout], list[_Class]]:
    found = _sorted(bulk, _Sorting(bulk.layout.mask, _is_standard(bulk.layout)))
    layouts = [Layout.compacted(cpu, _mask(key)) for key, _ in found]
    return layouts, [
        _conversion(bulk.layout, layout, key, count)
        for layout, (key, count) in zip(layouts, found, strict=True)
    ]


def _conversion(source: Layout, target: Layout, key: int, count: int) -> _Class:
    """Return what ``convert`` does to an image with this key: the same bits, moves and MXCSR."""
    stated, mask = key & ~_FORCED_SSE, _mask(key)
    lacking = [
        number
        for number in components_in(mask)
        if number not in target or (number in source and target.size_of(number) < source.size_of(number))
    ]
    if lacking:
        raise LayoutError(
            f"images state {mask_text(mask_of(*lacking))}, for which the target has too little room",
            help="convert such images one by one: convert() tells initial components from those that are lost",
        )
    record = Image.initial(target)
    for component in components_in(mask):
        record.store.activate(component)
    moves = register_moves(source, target, stated)
    carriers = _SSE | _AVX if _is_standard(source) else _SSE
    if stated & carriers and REGISTERS["mxcsr"].held_by(target):
        moves.append(_MXCSR)
    return _Class(key, count, _up(target.size), record.to_bytes(), sorted(moves))


def _mask(key: int) -> int:
    """Return the XSTATE_BV that images with a key get."""
    return key & ~_FORCED_SSE | (_SSE if key & _FORCED_SSE else 0)


def _is_standard(layout: Layout) -> bool:
    return layout.format is Format.STANDARD


def _up(size: int) -> int:
    return -(-size // _LINE) * _LINE


def _sorted(bulk: Bulk, sorting: _Sorting) -> list[tuple[int, int]]:
    """Return the keys of the images, each with its count; raises ImageError for the first illegal header."""
    classes: list[tuple[int, int]]
    classes, bad = _core().classify(*_arguments(bulk, sorting))
    if bad >= 0:
        _refuse(bulk, bad)
    return classes


def _gather(
    bulk: Bulk,
    sorting: _Sorting,
    classes: list[_Class],
    target: memoryview,
    indices: memoryview | None,
    stream: bool | None,
) -> None:
    """Make the records: class by class where ``indices`` are wanted, else in the order of the images."""
    rows, start = [], 0
    for each in classes:
        rows.append((each.key, start, each.stride, each.count, each.record, each.moves))
        start += 0 if indices is None else each.count * each.stride
    failed = _core().gather(
        *(*_arguments(bulk, sorting), bulk.layout.size, rows, target, indices is None, indices),
        -1 if stream is None else int(stream),
    )
    if failed >= 0:
        _refuse(bulk, failed)


def _arguments(bulk: Bulk, sorting: _Sorting) -> tuple[Any, ...]:
    """Return what ``classify`` and ``gather`` want to know of the images."""
    layout = bulk.layout
    return (
        *(bulk.view, bulk.stride, len(bulk), layout.xcomp_bv, layout.mask),
        *(sorting.mask, sorting.avx_carries_mxcsr),
    )


def _refuse(bulk: Bulk, index: int) -> None:
    start = index * bulk.stride
    try:
        bulk[index].store.xstate_bv()
    except ImageError as error:
        raise ImageError(
            f"image {index}, which begins at byte {start}: {error}",
            offset=None if error.offset is None else start + error.offset,
            found=error.found,
            expected=error.expected,
            help=error.help,
        ) from error
    raise ImageError(f"image {index} was changed while it was read", offset=start + 512)


def _room(out: Buffer | None, size: int) -> memoryview:
    """Return ``size`` writable bytes: of ``out``, or new ones at the start of a page."""
    if out is None:
        memory = mmap.mmap(-1, max(size, 1))
        if size >= _HUGE:
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(memory)[:size]
    view = memoryview(out).cast("B")
    if view.readonly or len(view) < size:
        raise ImageError(
            f"out has {len(view)} {'read-only ' if view.readonly else ''}bytes, {size} writable ones are needed",
            found=len(view),
            expected=size,
        )
    return view[:size]


def _core() -> ModuleType:
    try:
        from fpstate import _core
    except ImportError as error:
        raise UnsupportedHere(f"the native core (fpstate._core): {error}") from error
    return _core
