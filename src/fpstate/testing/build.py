"""Images and layouts of any processor, made from names and values: no hardware needed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import COMPONENTS, HEADER_SIZE, LEGACY_SIZE, Component, components_in, mask_of
from fpstate.arch.cpu import Cpu, Geometry
from fpstate.arch.layout import Format, Layout
from fpstate.errors import LayoutError
from fpstate.image import Image

MXCSR_MASK: Final = 0xFFFF
"""Bits of MXCSR that every processor of the catalog has."""
_RESERVED: Final[Mapping[str, int]] = MappingProxyType(
    {"fcw": 0xE0C0, "fop": 0xF800, "rtit_ctl": (1 << 64) - 1, "uintr_uinv": 0xFF}
)
"""Bits that random_image leaves clear: reserved, or such that XRSTORS refuses them (SDM Vol.1 13.5.6, 13.5.11)."""
_FIXED: Final[Mapping[str, int]] = MappingProxyType({"fcw": 0x0040})
"""Bits that it sets: processors read bit 6 of FCW as 1."""


def build_layout(cpu: Cpu | str, format: Format = Format.STANDARD, mask: int | None = None) -> Layout:
    """Return the layout of ``mask`` on a processor, by value or by its name in the catalog.

    Without a mask: all user components, and in the compacted format the supervisor components too. Raises
    UnknownCpu and LayoutError.
    """
    cpu = Cpu.catalog(cpu) if isinstance(cpu, str) else cpu
    if format is Format.STANDARD:
        return Layout.standard(cpu, mask)
    return Layout.compacted(cpu, cpu.user_mask | cpu.supervisor_mask if mask is None else mask)


def build_cpu(geometry: Mapping[int, Geometry], *, name: str = "invented") -> Cpu:
    """Return a processor that enumerates x87, SSE and these components; flags are those of a Zen 4."""
    user = mask_of(0, 1, *(number for number, each in geometry.items() if not each.supervisor))
    supervisor = mask_of(*(number for number, each in geometry.items() if each.supervisor))
    base = Cpu.catalog("zen4")
    return replace(base, name=name, source="model", xcr0=user, xss=supervisor, geometry=geometry)


def build_image(
    layout: Layout,
    registers: Mapping[str, int] | None = None,
    *,
    present: int = 0,
    leftovers: bytes = b"",
) -> Image:
    """Return a writable image with these register values, by debugger name; all else is initial.

    ``present`` sets more XSTATE_BV bits, of components that stay initial. ``leftovers`` fills, over and over,
    every byte that is no part of the state: absent components, gaps, padding, software bytes. Raises
    RegisterError for what the layout cannot hold, LayoutError for such bits in ``present``.
    """
    if present & ~layout.mask:
        raise LayoutError(f"{present & ~layout.mask:#x} has no place in a layout of {layout.mask:#x}")
    image = _poisoned(layout, leftovers) if leftovers else Image.initial(layout, "built")
    for component in components_in(present):
        image.store.activate(component)
    for name, value in (registers or {}).items():
        image.registers[name] = value
    return image


def random_image(
    layout: Layout,
    seed: int,
    *,
    present: int | None = None,
    mxcsr_mask: int = MXCSR_MASK,
    leftovers: bytes = b"",
) -> Image:
    """Return a writable image with random registers, the same for the same seed and layout.

    About two components in three are present, or exactly ``present``. The state is one that a processor with
    this layout can hold: no reserved bits in control registers, tile configurations that LDTILECFG takes,
    tracing off. In one register of four all bits are zeros or ones. ``leftovers`` as for ``build_image``.
    """
    source = random.Random(seed)
    if present is None:
        present = mask_of(*(number for number in components_in(layout.mask) if source.random() < 0.67))
    image = build_image(layout, present=present, leftovers=leftovers)
    for component in components_in(present):
        for offset, data in _contents(component, layout.size_of(component), source):
            image.store.write(component, offset, data)
    if present >> Component.SSE & 1:
        image.registers["mxcsr"] = source.getrandbits(32) & mxcsr_mask
    return image


def _contents(component: int, room: int, source: random.Random) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of the registers of one component."""
    if component not in COMPONENTS:
        yield 0, source.randbytes(room)
    elif component == Component.TILECFG:
        yield 0, _tile_configuration(source)[:room]
    else:
        for field in COMPONENTS[component].fields:
            if field.offset + field.size <= room:
                value = _bits(source, field.size) & ~_RESERVED.get(field.name, 0) | _FIXED.get(field.name, 0)
                yield field.offset, value.to_bytes(field.size, "little")


def _bits(source: random.Random, size: int) -> int:
    if source.random() < 0.25:
        return source.choice((0, (1 << 8 * size) - 1))
    return source.getrandbits(8 * size)


def _tile_configuration(source: random.Random) -> bytes:
    """Palette 1 with up to 16 rows of up to 64 bytes in each tile, or palette 0: no tiles at all."""
    if source.random() < 0.25:
        return bytes(64)
    widths = [source.randint(1, 16) * 4 for _ in range(8)]
    rows = bytes(source.randint(1, 16) for _ in range(8))
    return struct.pack("<BB14x8H16x", 1, 0, *widths) + rows.ljust(16, b"\0")


def _poisoned(layout: Layout, leftovers: bytes) -> Image:
    """An image whose components are all absent, and whose bytes are ``leftovers`` outside of the header."""
    data = bytearray((leftovers * (layout.size // len(leftovers) + 1))[: layout.size])
    header = bytes(8) + layout.xcomp_bv.to_bytes(8, "little")
    data[LEGACY_SIZE : LEGACY_SIZE + HEADER_SIZE] = header.ljust(HEADER_SIZE, b"\0")
    return Image(data, layout, "built")
