"""Which layout bytes have when their producer did not say: from XCR0 and the size, by what is known.

A state of N bytes for an XCR0 fits a known processor that supports these components when its standard format has
exactly N bytes for them. Usually all that fit agree on every place; where they do not, nothing is guessed.

The rows are the distinct user layouts of 527 recorded leaves 0DH (InstLatx64 and others, 141 hardware signatures),
and the announced APX. Intel's offsets are Centaur's and Zhaoxin's too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from fpstate.arch.component import (
    LEGACY,
    LEGACY_PLACES,
    MIN_SIZE,
    Component,
    components_in,
)
from fpstate.arch.layout import Format, Layout, Place
from fpstate.errors import AmbiguousLayout, LayoutError

_C = Component
_Places = Mapping[int, tuple[int, int]]

INTEL: Final[_Places] = MappingProxyType(
    {
        _C.AVX: (576, 256),
        _C.BNDREGS: (960, 64),
        _C.BNDCSR: (1024, 64),
        _C.OPMASK: (1088, 64),
        _C.ZMM_HI256: (1152, 512),
        _C.HI16_ZMM: (1664, 1024),
        _C.PKRU: (2688, 8),
        _C.TILECFG: (2752, 64),
        _C.TILEDATA: (2816, 8192),
    }
)
APX: Final[_Places] = MappingProxyType({**INTEL, _C.APX: (960, 128)})
AMD: Final[_Places] = MappingProxyType(
    {
        _C.AVX: (576, 256),
        _C.OPMASK: (832, 64),
        _C.ZMM_HI256: (896, 512),
        _C.HI16_ZMM: (1408, 1024),
        _C.PKRU: (2432, 8),
    }
)
ZEN2: Final[_Places] = MappingProxyType({_C.AVX: (576, 256), _C.PKRU: (832, 64), _C.LWP: (896, 128)})
BULLDOZER: Final[_Places] = MappingProxyType({_C.AVX: (576, 256), _C.LWP: (832, 128)})


class Known(NamedTuple):
    """Processors that share their user components and the places of these; offsets and sizes in bytes."""

    xcr0: int
    places: _Places
    cpus: tuple[str, ...]
    recorded: bool = True


KNOWN: Final = (
    Known(0x3, INTEL, ("Penryn (not in the catalog)",)),
    Known(0x7, INTEL, ("haswell", "zen1")),
    Known(0x1B, INTEL, ("Goldmont (not in the catalog)",)),
    Known(0x1F, INTEL, ("skylake-client",)),
    Known(0x21F, INTEL, ("Comet Lake (not in the catalog)",)),
    Known(0x207, INTEL, ("alder-lake", "arrow-lake", "lunar-lake", "meteor-lake")),
    Known(0xE7, INTEL, ("knights-landing",)),
    Known(0xFF, INTEL, ("skylake-x",)),
    Known(0x2E7, INTEL, ("ice-lake-sp", "tiger-lake")),
    Known(0x2FF, INTEL, ("cascade-lake-sp", "rocket-lake", "skylake-sp")),
    Known(0x602E7, INTEL, ("emerald-rapids", "granite-rapids", "sapphire-rapids")),
    Known(0x802E7, APX, ("apx-no-amx-model",), recorded=False),
    Known(0xE02E7, APX, ("diamond-rapids-model",), recorded=False),
    Known(1 << 62 | 0x7, BULLDOZER, ("bulldozer",)),
    Known(0x207, ZEN2, ("zen2",)),
    Known(1 << 62 | 0x207, ZEN2, ("a Zen 2 APU with LWP (not in the catalog)",)),
    Known(0x207, AMD, ("zen3",)),
    Known(0xE7, AMD, ("a guest on Zen 4 (not in the catalog)",)),
    Known(0x2E7, AMD, ("zen4", "zen5")),
)
"""Every layout that is known. Names are the catalog's where it has such a processor."""


@lru_cache(maxsize=64)
def infer(xcr0: int, size: int, xstate_bv: int = 0) -> Layout:
    """Return the one known standard layout of ``size`` bytes for ``xcr0``; 0 means that nobody stated it.

    ``xstate_bv`` rules out layouts without room for what is present, where XCR0 is not stated. Raises
    AmbiguousLayout where known layouts that fit differ, and LayoutError where none fits.
    """
    fitting: dict[Layout, list[str]] = {}
    for known in KNOWN:
        mask = xcr0 or known.xcr0
        if mask & ~known.xcr0 == 0 and xstate_bv & ~mask == 0 and _size(known, mask) == size:
            fitting.setdefault(layout_of(known.places, mask), []).extend(known.cpus)
    if len(fitting) == 1:
        return next(iter(fitting))
    stated = f"XCR0 {xcr0:#x}" if xcr0 else "an XCR0 that is not stated"
    if not fitting:
        raise LayoutError(
            f"no known layout has {size} bytes for {stated}",
            help="the state may be cut short or padded; name its producer with --cpu",
        )
    raise AmbiguousLayout(
        f"{len(fitting)} known layouts have {size} bytes for {stated}",
        [name for names in fitting.values() for name in names],
    )


def disputed(xcr0: int) -> int:
    """Return the bitmap of those components of ``xcr0`` that known processors keep at different places.

    Only processors that support all of ``xcr0`` count: with MPX nothing is disputed, as only Intel has it.
    """
    able = [known.places for known in KNOWN if xcr0 & ~known.xcr0 == 0]
    return sum(
        1 << component
        for component in components_in(xcr0 & ~LEGACY)
        if len({places[component] for places in able}) > 1
    )


def layout_of(places: _Places, mask: int) -> Layout:
    """Return the standard layout of ``mask`` with components from 2 on at these places."""
    table = {**LEGACY_PLACES, **places}
    return Layout.from_places(
        Format.STANDARD, [Place(component, *table[component]) for component in components_in(mask)]
    )


def is_intel(layout: Layout) -> bool:
    """Tell whether every component lies where Intel's processors have it."""
    return all(
        (place.offset, place.size) == INTEL.get(place.component)
        for place in layout.places
        if place.component not in LEGACY_PLACES
    )


def _size(known: Known, mask: int) -> int:
    return max((MIN_SIZE, *(offset + size for offset, size in _extended(known, mask))))


def _extended(known: Known, mask: int) -> Iterator[tuple[int, int]]:
    return (known.places[component] for component in components_in(mask & ~LEGACY))
