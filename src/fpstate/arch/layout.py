"""Where each component lies in an image, for a set of components and a format.

Sources: SDM Vol. 1, 13.4.3 (both formats); Linux ``xfeature_get_offset`` and ``xstate_calculate_size`` in
``arch/x86/kernel/fpu/xstate.c``; KVM ``xstate_required_size``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY_PLACES,
    MIN_SIZE,
    component_name,
    components_in,
    mask_of,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.errors import LayoutError

_ALIGNMENT = 64


class Format(enum.Enum):
    """The two formats of the extended region (SDM Vol. 1, 13.4.3)."""

    STANDARD = "standard"
    COMPACTED = "compacted"


@dataclass(frozen=True, slots=True)
class Place:
    """One component's bytes in an image: ``offset`` from its start and ``size``, in bytes."""

    component: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte behind the component."""
        return self.offset + self.size


@dataclass(frozen=True)
class Layout:
    """The places of the components in ``mask``, in offset order, and the image's ``size`` in bytes.

    The size is the furthest end of any place, and at least 576: with APX the highest component is not the
    last one (it lies at 960), so the last bit says nothing about the extent. There is no trailing padding.
    """

    format: Format
    mask: int
    places: tuple[Place, ...]
    size: int

    @classmethod
    def standard(cls, cpu: Cpu, mask: int | None = None) -> Self:
        """Lay out ``mask`` (default: the processor's ``user_mask``) as XSAVE does, at CPUID's fixed offsets.

        Raises LayoutError for supervisor components, which the standard format cannot hold, and for
        components that this processor's CPUID does not enumerate.
        """
        mask = cpu.user_mask if mask is None else mask
        places = [
            Place(component, *LEGACY_PLACES[component])
            for component in LEGACY_PLACES
            if mask >> component & 1
        ]
        for component in _extended(cpu, mask):
            geometry = cpu.geometry[component]
            if geometry.supervisor:
                raise LayoutError(
                    f"the standard format cannot hold {component_name(component)}, a supervisor component",
                    help="lay it out compacted, or leave it out of the mask",
                )
            places.append(Place(component, geometry.offset, geometry.size))
        return cls.from_places(Format.STANDARD, places)

    @classmethod
    def compacted(cls, cpu: Cpu, mask: int | None = None) -> Self:
        """Lay out ``mask`` (default: the processor's ``user_mask``) as XSAVEC and XSAVES do, without gaps.

        Components follow each other by number from byte 576, those with the align flag at multiples of 64.
        Raises LayoutError for components that this processor's CPUID does not enumerate.
        """
        mask = cpu.user_mask if mask is None else mask
        places = [
            Place(component, *LEGACY_PLACES[component])
            for component in LEGACY_PLACES
            if mask >> component & 1
        ]
        cursor = MIN_SIZE
        for component in _extended(cpu, mask):
            geometry = cpu.geometry[component]
            if geometry.aligned:
                cursor = -(-cursor // _ALIGNMENT) * _ALIGNMENT
            places.append(Place(component, cursor, geometry.size))
            cursor += geometry.size
        return cls.from_places(Format.COMPACTED, places)

    @classmethod
    def from_places(cls, format: Format, places: Iterable[Place], *, size: int | None = None) -> Self:
        """Make a layout from places that a producer states, such as the NT_X86_XSAVE_LAYOUT note of a core.

        ``size`` is the bytes the producer's image has where that is more than its components need.
        Raises LayoutError when places overlap, repeat a component, lie in the header, put x87 or SSE anywhere
        but in the legacy region, or do not fit ``size``.
        """
        ordered = tuple(sorted(places, key=lambda place: place.offset))
        problem = _problem(ordered)
        extent = max((MIN_SIZE, *(place.end for place in ordered)))
        if problem is None and size is not None and size < extent:
            problem = f"the components end at byte {extent}, behind the stated size of {size}"
        if problem is not None:
            raise LayoutError(problem)
        mask = mask_of(*(place.component for place in ordered))
        return cls(format, mask, ordered, extent if size is None else size)

    @property
    def xcomp_bv(self) -> int:
        """XCOMP_BV of an image in this layout: 0 if standard, bit 63 and the mask if compacted."""
        return COMPACTED_BIT | self.mask if self.format is Format.COMPACTED else 0

    def place(self, component: int) -> Place:
        """Return where a component lies; raises LayoutError when this layout has no room for it."""
        try:
            return self._by_component[component]
        except KeyError:
            name, own = component_name(component), mask_text(self.mask)
            raise LayoutError(f"{name} has no place in this {self.format.value} layout of {own}") from None

    def offset(self, component: int) -> int:
        """Return a component's first byte; raises LayoutError when this layout has no room for it."""
        return self.place(component).offset

    def size_of(self, component: int) -> int:
        """Return a component's bytes; raises LayoutError when this layout has no room for it."""
        return self.place(component).size

    def __contains__(self, component: object) -> bool:
        return component in self._by_component

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as JSON-ready data; the mask is a hexadecimal string, the rest are numbers."""
        places = [{"component": p.component, "offset": p.offset, "size": p.size} for p in self.places]
        return {"format": self.format.value, "mask": f"{self.mask:#x}", "size": self.size, "places": places}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote; raises LayoutError when it is incomplete or contradicts itself."""
        try:
            places = [Place(int(p["component"]), int(p["offset"]), int(p["size"])) for p in data["places"]]
            layout = cls.from_places(Format(data["format"]), places, size=int(data["size"]))
            mask = int(data["mask"], 16)
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # the last is int() of infinity
            raise LayoutError(f"not a layout: {error!r}") from error
        if mask != layout.mask:
            raise LayoutError(f"the mask {mask:#x} is not that of the places, {layout.mask:#x}")
        return layout

    @cached_property
    def _by_component(self) -> dict[int, Place]:
        return {place.component: place for place in self.places}


def _extended(cpu: Cpu, mask: int) -> list[int]:
    if mask < 0 or mask & COMPACTED_BIT or mask >> 64:
        raise LayoutError(f"{mask:#x} is no set of components")
    extended = [component for component in components_in(mask) if component not in LEGACY_PLACES]
    if missing := [component for component in extended if component not in cpu.geometry]:
        raise LayoutError(
            f"CPUID of {cpu.name} does not say how large {mask_text(mask_of(*missing))} is",
            help=f"it enumerates {mask_text(mask_of(*cpu.geometry) | mask_of(*LEGACY_PLACES))}",
        )
    return extended


def _problem(ordered: tuple[Place, ...]) -> str | None:
    seen: set[int] = set()
    end = 0
    for place in ordered:
        name = component_name(place.component)
        legacy = LEGACY_PLACES.get(place.component)
        if place.component in seen or not 0 <= place.component <= 62:
            return f"{name} occurs twice or is no component"
        if legacy is not None and (place.offset, place.size) != legacy:
            return f"{name} must have {legacy[1]} bytes at {legacy[0]}, not {place.size} at {place.offset}"
        if legacy is None and (place.offset < MIN_SIZE or place.size <= 0):
            return f"{name} cannot lie at {place.offset} with {place.size} bytes"
        if place.offset < end:
            return f"{name} at {place.offset} overlaps the component that ends at {end}"
        seen.add(place.component)
        end = place.end
    return None
