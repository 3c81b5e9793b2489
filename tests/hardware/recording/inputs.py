"""Images by chance: bytes of the pool, patched, and then broken in what rules look at."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from fpstate.arch import Component, Layout
from fpstate.arch.component import COMPACTED_BIT, components_in
from fpstate.testing.chance import mangle, tile_configuration
from recorded import POOL_SIZE, Patch, build

from .host import Host, place_of

ALL = (1 << 64) - 1
RANDOM, ZEROS, NEARLY = 40960, 40960, 57344
"""The pool: so many random bytes, then 8 KiB of zeros, of FFH, and of zeros with a bit here and there."""
TEMPLATES = 140
_PART = 8192
_CONTROLS = ("7f03", "7f03", "7f0f", "4000", "7f1f", "0000", "ffff", "7f02", "7e03")
_STATUSES = ("0000", "8180", "0047")
_MXCSRS = (0x1F80, 0x1F80, 0x9FC0, 0x7F80, 0x1FBF, 0x0000)
_TILES = struct.pack("<BB14x8H16x8B8x", 1, 0, *(48, 60, 8, 16, 64, 0, 0, 0), *(1, 8, 6, 12, 8, 0, 0, 0))
"""The pattern's tiles: five, none of them whole."""
_PKRUS = (0x55555554, 0xFFFFFFFC, 0)


def make_pool(seed: int) -> bytes:
    """Return the bytes that images and moves are cut from."""
    source = random.Random(seed)
    nearly = bytearray(_PART)
    for _ in range(_PART // 64):
        nearly[source.randrange(_PART)] = 1 << source.randrange(8)
    pool = source.randbytes(RANDOM) + bytes(_PART) + b"\xff" * _PART + nearly
    assert len(pool) == POOL_SIZE
    return pool


class Inputs:
    """Makes images for one machine; equal seeds give equal images."""

    def __init__(self, host: Host, pool: bytes, seed: int) -> None:
        self.host = host
        self.pool = pool
        self.source = random.Random(seed)

    def pattern(self, xfeatures: int) -> list[Patch]:
        """A legal standard image that differs from initial registers and from other images in every component."""
        patches: list[Patch] = [
            [0, "7f0300385a00000111213141516171001222324252620000"],
            [24, "a13f0000" + self.host.cpu.mxcsr_mask.to_bytes(4, "little").hex()],
        ]
        for component in components_in(xfeatures):
            start, size = place_of(self.host.standard, component) or (0, 0)
            if component == Component.PKRU:
                patches.append([start, "5455555500000000"])
            elif component == Component.TILECFG:
                patches.append([start, _TILES.hex()])
            else:
                patches.append([start, self._random(size), size])
        patches.append([512, xfeatures.to_bytes(8, "little").hex()])
        return patches

    def template(self, *, compacted: float = 0.35, broken: float = 0.25) -> list[Patch]:
        """An image in one of the formats, of some components, now and then broken."""
        source, host = self.source, self.host
        if host.compaction and source.random() < compacted:
            room = host.xcr0 if source.random() < 0.7 else source.getrandbits(20) & host.xcr0
            layout, xcomp_bv = host.layout(_header(room | COMPACTED_BIT)), room | COMPACTED_BIT
        else:
            layout, xcomp_bv = host.standard, 0
        present = (
            layout.mask
            & host.xcr0
            & (source.getrandbits(20) | source.getrandbits(20) | source.choice((0, 3, 7)))
        )
        patches = self._legacy(present)
        for component in components_in(present & ~3):
            patches.append(self._component(component, layout))
        patches.append([512, (present.to_bytes(8, "little") + xcomp_bv.to_bytes(8, "little")).hex()])
        if source.random() < 0.3:
            patches += self.blanks(layout, present)
        if source.random() < broken:
            patches += self.mutations(build(patches, self.pool, host.size))
        return patches

    def blanks(self, layout: Layout, present: int) -> list[Patch]:
        """Some components become zeros, or nearly."""
        chosen = [n for n in components_in(present & ~3) if self.source.random() < 0.4]
        places = [place_of(layout, n) or (0, 0) for n in chosen]
        return [[start, self.source.choice((ZEROS, ZEROS, NEARLY)), size] for start, size in places]

    def mutations(self, image: bytes | bytearray, start: int = 0, *, most: int = 3) -> list[Patch]:
        """Break an image of which the XSAVE part begins at ``start``; returns what makes the difference."""
        source = self.source
        part = bytearray(image[start:])
        mangle(part, source, most=most)
        layout = self.host.layout(image, start) if len(part) >= 576 else self.host.standard
        tiles = place_of(layout, Component.TILECFG)
        if tiles and Component.TILECFG in layout and source.random() < 0.3:
            part[tiles[0] : tiles[0] + tiles[1]] = tile_configuration(source)
        if source.random() < 0.15:
            part[0:2] = bytes.fromhex(source.choice(_CONTROLS))
        return difference(image, bytes(image[:start]) + bytes(part[: len(image) - start]))

    def mask(self) -> int:
        """EDX:EAX of a save or a restore."""
        source, xcr0 = self.source, self.host.xcr0
        chance = source.random()
        if chance < 0.35:
            return xcr0
        if chance < 0.5:
            return ALL
        if chance < 0.7:
            return 1 << source.choice(list(components_in(xcr0)))
        if chance < 0.85:
            return source.randrange(8)
        return source.getrandbits(20) & xcr0

    def _legacy(self, present: int) -> list[Patch]:
        source = self.source
        patches: list[Patch] = []
        if present & 1:
            patches += [[0, self._random(24), 24], [32, self._random(128), 128]]
            if source.random() < 0.5:
                patches.append([0, source.choice(_CONTROLS)])
            if source.random() < 0.2:
                patches.append([2, source.choice(_STATUSES)])
        if present & 2:
            patches.append([160, self._random(256), 256])
        mask = self.host.cpu.mxcsr_mask
        mxcsr = source.choice(_MXCSRS) if source.random() < 0.5 else source.getrandbits(32) & mask
        patches.append([24, (mxcsr.to_bytes(4, "little") + mask.to_bytes(4, "little")).hex()])
        return patches

    def _component(self, component: int, layout: Layout) -> Patch:
        source = self.source
        start, size = place_of(layout, component) or (0, 0)
        if component == Component.PKRU:
            value = source.choice(_PKRUS) if source.random() < 0.6 else source.getrandbits(32) & ~3
            rest = bytes(4) if source.random() < 0.6 else source.randbytes(4)
            return [start, (value.to_bytes(4, "little") + rest).hex()]
        if component == Component.TILECFG:
            return [start, tile_configuration(source).hex()]
        return [start, self._random(size), size]

    def _random(self, size: int) -> int:
        return self.source.randrange(RANDOM - size)


def difference(before: bytes | bytearray, after: bytes | bytearray) -> list[Patch]:
    """Return the patches that make one image another of the same length."""
    changed: list[int] = []
    for start in range(0, len(before), 64):
        if before[start : start + 64] != after[start : start + 64]:
            changed += [n for n in range(start, min(start + 64, len(before))) if before[n] != after[n]]
    return runs(after, changed)


def runs(data: bytes | bytearray, changed: Sequence[int]) -> list[Patch]:
    """Bytes at ascending offsets as patches; neighbours are one patch."""
    patches: list[Patch] = []
    start = previous = -2
    for offset in (*changed, -1):
        if offset != previous + 1 and start >= 0:
            patches.append([start, bytes(data[start : previous + 1]).hex()])
        if offset != previous + 1:
            start = offset
        previous = offset
    return patches


def _header(xcomp_bv: int) -> bytes:
    return bytes(520) + xcomp_bv.to_bytes(8, "little")
