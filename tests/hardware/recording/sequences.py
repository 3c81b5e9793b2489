"""Sequences of operations by chance: what one case of a file of sequences asks for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fpstate.arch import Component, mask_of
from fpstate.arch.component import AVX512
from fpstate.testing.chance import tile_configuration
from recorded import POOL_SIZE

from .host import Host, place_of
from .inputs import ALL, RANDOM, Inputs

Operation = list[Any]

AREAS = 3
SPARE = 256
"""Bytes of an area beyond a standard image: misaligned saves reach there."""
ROW = 64
"""Bytes between two rows of a tile in memory."""
MOST_TILE_BYTES = 16 * ROW
# fmt: off
SAVES = frozenset(("xsave", "xsave64", "xsavec", "xsavec64", "xsaveopt", "xsaveopt64", "xsaves64", "fxsave", "fxsave64",
                   "fxsave@32", "xsave@32", "xsavec@32", "xsaveopt@32"))
RESTORES = frozenset(("xrstor", "xrstor64", "xrstors64", "fxrstor", "fxrstor64", "fxrstor@32", "xrstor@32"))
READS = frozenset(("xgetbv", "stmxcsr", "fnstcw", "fnstsw", "rdpkru"))
STORES = frozenset(("sttilecfg", "tilestored"))
# fmt: on
_SHORTEST, _LONGEST = 4, 14
_CONTROLS = (0x037F, 0x037F, 0x0F7F, 0x0040, 0x1F7F, 0x0000, 0xFFFF, 0x027F, 0x037E)
_MXCSRS = (0x1F80, 0x1F80, 0x9FC0, 0x7F80, 0x1FBF, 0x0000, 0x2FFFF, 0xFFFF, 0x10000)
_PKRUS = (0, 0x55555554, 0xFFFFFFFC, 0xFFFFFFFF, 1, 2)
_SKEWS = (16, 8, 32, 1)

Maker = Callable[[], Operation]


class Sequences:
    """Makes sequences for one machine. ``short``: 32-bit code runs here. ``x87``: x87 instructions among them."""

    def __init__(self, host: Host, inputs: Inputs, *, short: bool, x87: bool = False) -> None:
        self.host = host
        self.inputs = inputs
        self.area = host.size + SPARE
        self.source: random.Random = inputs.source
        self.makers = [maker for weight, maker in self._weighted(short, x87) for _ in range(weight)]

    def one(self) -> list[Operation]:
        """Return the next sequence; a save of everything ends it."""
        made: list[Operation] = []
        for _ in range(self.source.randrange(_SHORTEST, _LONGEST)):
            if self.host.cpu.has("XSAVEOPT") and self.source.random() < 0.06:
                made += self._optimised()
            else:
                made.append(self.source.choice(self.makers)())
        return [*made, ["xsave64", 2, ALL, 0]]

    def _weighted(self, short: bool, x87: bool) -> list[tuple[int, Maker]]:
        has, xcr0 = self.host.cpu.has, self.host.xcr0
        avx = xcr0 & mask_of(Component.AVX)
        avx512 = xcr0 & AVX512 == AVX512
        saves = ["xsave64", "xsave64", "xsave"]
        saves += ["xsavec64", "xsavec64", "xsavec"] if has("XSAVEC") else []
        saves += ["xsaveopt64", "xsaveopt64", "xsaveopt"] if has("XSAVEOPT") else []
        in_32_bits = ["xsave@32", "xsave@32", "xrstor@32", "xrstor@32", "xrstor@32"]
        in_32_bits += ["xsavec@32"] if has("XSAVEC") else []
        in_32_bits += ["xsaveopt@32"] if has("XSAVEOPT") else []
        moves = [("movups", 16)]
        moves += [("vmovups128", 16), ("vmovups256", 16)] if avx else []
        moves += [("vmovups512", 32), ("vmovups512", 32)] if avx512 else []
        moves += [("kmovq", 8)] if avx512 and has("AVX512BW") else []
        resets = ["fninit", "fnclex", "emms", *(["vzeroupper", "vzeroall"] if avx else [])]
        makers: list[tuple[int, Maker]] = [
            (18, self._on_area(saves)),
            (22, self._on_area(["xrstor64"] * 6 + ["xrstor"])),
            (4, self._legacy(["fxsave64", "fxsave", "fxrstor64", "fxrstor64", "fxrstor"])),
            (1, self._on_area(["xsaves64", "xrstors64"])),
            (12, self._move(moves)),
            (2, self._move([("movq", 8)])),
            (5, self._plain(resets)),
            (3, self._plain(["stmxcsr", "fnstcw", "fnstsw"])),
            (6, self._control),
            (2, self._xgetbv),
            (10, self._edit),
            (4, self._copy),
        ]
        if avx:
            makers.append((2, self._zero(32 if avx512 else 16)))
        if short:
            makers += [(6, self._on_area(in_32_bits)), (2, self._legacy(["fxsave@32", "fxrstor@32"]))]
        if self.host.has_pkru:
            makers += [(3, self._wrpkru), (1, self._plain(["rdpkru"]))]
        if self.host.has_tiles:
            makers += [(5, self._ldtilecfg), (9, self._tiles), (2, self._plain(["tilerelease"]))]
        if x87:
            makers.append((40, self._x87))
        return makers

    def _on_area(self, names: list[str]) -> Maker:
        return lambda: [self.source.choice(names), self._area(), self.inputs.mask(), self._skew()]

    def _legacy(self, names: list[str]) -> Maker:
        return lambda: [self.source.choice(names), self._area(), 0, self._skew()]

    def _move(self, kinds: list[tuple[str, int]]) -> Maker:
        def make() -> Operation:
            name, count = self.source.choice(kinds)
            return [name, self.source.randrange(count), self._start(64)]

        return make

    def _plain(self, names: list[str]) -> Maker:
        return lambda: [self.source.choice(names)]

    def _zero(self, count: int) -> Maker:
        return lambda: ["vpxor", self.source.randrange(count)]

    def _control(self) -> Operation:
        source = self.source
        if source.random() < 0.5:
            return ["fldcw", source.choice(_CONTROLS) if source.random() < 0.5 else source.getrandbits(16)]
        mask = self.host.cpu.mxcsr_mask
        return ["ldmxcsr", source.choice(_MXCSRS) if source.random() < 0.5 else source.getrandbits(32) & mask]

    def _xgetbv(self) -> Operation:
        return ["xgetbv", self.source.choice((1, 1, 1, 0, 0, 2))]

    def _wrpkru(self) -> Operation:
        return [
            "wrpkru",
            self.source.choice(_PKRUS) if self.source.random() < 0.5 else self.source.getrandbits(32),
        ]

    def _ldtilecfg(self) -> Operation:
        return ["ldtilecfg", tile_configuration(self.source).hex()]

    def _tiles(self) -> Operation:
        source = self.source
        stored = source.randrange(self.area - MOST_TILE_BYTES) if self.area > MOST_TILE_BYTES else 0
        return source.choice(
            (
                ["tilezero", source.randrange(8)],
                ["tileloadd", source.randrange(8), self._start(MOST_TILE_BYTES)],
                ["tileloadd", source.randrange(8), self._start(MOST_TILE_BYTES)],
                ["tilestored", source.randrange(8), self._area(), stored],
                ["sttilecfg", self._area(), source.randrange(0, self.area - 64, 8)],
            )
        )

    def _x87(self) -> Operation:
        return self.source.choice((["fldt", self._start(16)], ["fldt", self._start(16)], ["fstp"]))

    def _edit(self) -> Operation:
        """Write a few bytes: into the header, the control words, PKRU, or anywhere."""
        source, xcr0 = self.source, self.host.xcr0
        some = source.getrandbits(20) & xcr0
        eight = source.randbytes(8)
        pkru = place_of(self.host.standard, Component.PKRU) if self.host.has_pkru else None
        where, data = source.choice(
            (
                (512, some.to_bytes(8, "little")),
                (512, some.to_bytes(8, "little")),
                (520, (source.choice((0, 0, xcr0 | 1 << 63))).to_bytes(8, "little")),
                (528 + source.randrange(48), bytes([source.getrandbits(1)])),
                (24, (source.getrandbits(32) & self.host.cpu.mxcsr_mask).to_bytes(4, "little")),
                (8 * source.randrange(4), eight),
                (32 + 8 * source.randrange(16), eight),
                (pkru[0] if pkru else 0, eight),
                (source.randrange(self.area - 8), eight),
                (source.randrange(self.area - 8), eight),
            )
        )
        return ["edit", self._area(), where, data.hex()]

    def _copy(self) -> Operation:
        """Write many bytes into the components."""
        source = self.source
        length = 8 * source.randint(1, 64)
        low, high = (32, 512) if source.random() < 0.3 else (576, self.area)
        where = low + 8 * source.randrange((high - low) // 8)
        return ["copy", self._area(), where, self._start(512), min(length, high - where)]

    def _optimised(self) -> list[Operation]:
        """Restore, perhaps change a register, edit the area, and save there by XSAVEOPT."""
        source = self.source
        area, mask = self._area(), self.inputs.mask()
        made: list[Operation] = [["xrstor64", area, mask, 0]]
        made += [source.choice(self.makers)() for _ in range(source.choice((0, 0, 1, 2)))]
        for _ in range(2):
            where = source.choice((40, 168, *(start for start, _ in self._places()))) + 8 * source.randrange(
                8
            )
            made.append(["edit", area, min(where, self.area - 8), source.randbytes(8).hex()])
        return [*made, ["xsaveopt64", area, mask if source.random() < 0.75 else self.inputs.mask(), 0]]

    def _places(self) -> list[tuple[int, int]]:
        return [(place.offset, place.size) for place in self.host.standard.places if place.component > 1]

    def _area(self) -> int:
        return self.source.randrange(AREAS)

    def _skew(self) -> int:
        return self.source.choice(_SKEWS) if self.source.random() < 0.016 else 0

    def _start(self, size: int) -> int:
        """Where a piece of the pool begins; more often than not in the random part."""
        return self.source.randrange(RANDOM - size if self.source.random() < 0.6 else POOL_SIZE - size)
