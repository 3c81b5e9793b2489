"""Random sequences of operations for the processor and for its model: what executor.c reads, made by chance."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from tile_configurations import any_configuration

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import AMX, AVX512, LEGACY, components_in
from fpstate.testing import random_image
from fpstate.testing.chance import mangle

COMPARED = LEGACY | AVX512 | AMX | mask_of(Component.AVX, Component.APX, Component.PKRU)
"""What sequences load and save. With MPX every branch changes the bounds."""
AREAS = 3
"""Areas of each sequence."""
SEQUENCES = 250
"""Sequences of each batch."""
DATA_SIZE = 1 << 16
"""Bytes of each batch's data for moves."""
OPERATION = struct.Struct("<BBBBIQQ")

_PKRU = mask_of(Component.PKRU)
_PKRUS = (0, 0x5555_5554, 0x5555_5555, 0xFFFF_FFFC, 0xFFFF_FFFF, 3)
_CONFIGURATIONS = 64
"""How many tile configurations each batch's data begin with."""
_TILE_BYTES = 1024
_SHORTEST, _LONGEST = 4, 14
_TEMPLATES = 48
_CONTROLS = (0x037F, 0x037F, 0x0F7F, 0x0040, 0x1F7F, 0x0000, 0xFFFF, 0x027F, 0x037E)
_MXCSRS = (0x1F80, 0x1F80, 0x9FC0, 0x7F80, 0x1FBF, 0x0000, 0x2FFFF, 0xFFFF, 0x10000)


class Kind(IntEnum):
    """Operations, in the order of executor.c."""

    START = 0
    FXSAVE = 1
    FXSAVE64 = 2
    XSAVE = 3
    XSAVE64 = 4
    XSAVEC = 5
    XSAVEC64 = 6
    XSAVEOPT = 7
    XSAVEOPT64 = 8
    XSAVES64 = 9
    FXRSTOR = 10
    FXRSTOR64 = 11
    XRSTOR = 12
    XRSTOR64 = 13
    XRSTORS64 = 14
    XGETBV = 15
    XMM = 16
    VXMM = 17
    VYMM = 18
    VZMM = 19
    KMOV = 20
    MMX = 21
    VZEROUPPER = 22
    VZEROALL = 23
    FNINIT = 24
    FNCLEX = 25
    EMMS = 26
    FLDCW = 27
    LDMXCSR = 28
    STMXCSR = 29
    FNSTCW = 30
    FNSTSW = 31
    EDIT = 32
    COPY = 33
    FXSAVE32 = 34
    XSAVE32 = 35
    XSAVEC32 = 36
    XSAVEOPT32 = 37
    FXRSTOR32 = 38
    XRSTOR32 = 39
    ZERO = 40
    WRPKRU = 41
    RDPKRU = 42
    LDTILECFG = 43
    STTILECFG = 44
    TILERELEASE = 45
    TILEZERO = 46
    TILELOADD = 47
    TILESTORED = 48


SAVES = frozenset((*range(Kind.FXSAVE, Kind.XSAVES64 + 1), *range(Kind.FXSAVE32, Kind.XSAVEOPT32 + 1)))


Operation = tuple[int, int, int, int, int, int, int]
"""Kind, index of a register, length, misalignment, where, value, number of the area."""


@dataclass
class Batch:
    """Some sequences, the areas that they begin with, and the data that their moves take."""

    number: int
    sequences: list[list[Operation]]
    areas: list[bytes]
    data: bytes


class Generator:
    """Makes batches for a processor with ``xcr0``; equal seeds give equal sequences.

    ``short``: also instructions outside 64-bit mode. ``without``: components that are left out.
    """

    def __init__(self, cpu: Cpu, xcr0: int, seed: int, *, short: bool = False, without: int = 0) -> None:
        self.cpu = cpu
        self.xcr0 = xcr0
        self.short = short
        self.compared = xcr0 & COMPARED & ~without
        self.source = random.Random(seed)
        self.standard = Layout.standard(cpu, xcr0)
        layouts = [self.standard]
        if cpu.has("XSAVEC"):
            layouts.append(Layout.compacted(cpu, xcr0))
            layouts += [
                Layout.compacted(cpu, self.compared & keep) for keep in (0xE7, 0x7, 0xA6, 0x22, 0x84, 1)
            ]
            if self.compared & AMX:
                layouts += [Layout.compacted(cpu, xcr0 & keep) for keep in (0x202, 0x60000, 0x60207, 0x20020)]
        self.layouts = layouts
        self.area_size = -(-max(layout.size for layout in layouts) // 64) * 64
        self.masks = self._masks()
        places = (place for place in self.standard.places if self.compared >> place.component & 1)
        self._edited = [40, 168, *(place.offset + 8 for place in places if place.component > Component.SSE)]
        self._makers = self._weighted()
        self._batches = 0
        self._first = 0

    def batch(self, count: int = SEQUENCES) -> Batch:
        """Return the next ``count`` sequences."""
        source = self.source
        templates = [self._template() for _ in range(_TEMPLATES)]
        data = source.randbytes(DATA_SIZE // 2) + bytes(DATA_SIZE // 4) + b"\xff" * (DATA_SIZE // 4)
        if self.compared & AMX:
            data = (
                b"".join(any_configuration(self.source) for _ in range(_CONFIGURATIONS))
                + data[64 * _CONFIGURATIONS :]
            )
        areas = [templates[source.getrandbits(16) % _TEMPLATES] for _ in range(AREAS * count)]
        sequences = [self._sequence(AREAS * number) for number in range(count)]
        self._batches += 1
        return Batch(self._batches - 1, sequences, areas, data)

    def _masks(self) -> list[int]:
        everything = (1 << 64) - 1 & ~(self.xcr0 & ~self.compared)
        singles = [1 << number for number in components_in(self.compared)]
        chance = random.Random(1)
        some = [chance.getrandbits(20) & self.compared for _ in range(24)]
        return [*[self.compared] * 24, *[everything] * 4, 0, 0, *range(8), *singles, *some]

    def _template(self) -> bytes:
        """One area: an image in some layout, broken or not, or no image at all."""
        source = self.source
        choice = source.random()
        if choice < 0.06:
            return bytes([source.choice((0, 0xCC, 0xFF))]) * self.area_size
        layout = source.choice(self.layouts)
        present = source.getrandbits(20) & layout.mask & self.compared
        leftovers = source.randbytes(64) if source.random() < 0.5 else b""
        image = random_image(
            layout,
            source.getrandbits(32),
            present=present,
            mxcsr_mask=self.cpu.mxcsr_mask,
            leftovers=leftovers,
        )
        data = bytearray(image.to_bytes().ljust(self.area_size, b"\0"))
        if source.random() < 0.3:
            self._initial_components(data, layout, present)
        if present & layout.mask & AMX and Component.TILECFG in layout and source.random() < 0.4:
            place = layout.place(Component.TILECFG)
            data[place.offset : place.end] = any_configuration(self.source)
        if source.random() < 0.25:
            mangle(data, source)
        if source.random() < 0.3:
            data[0:2] = source.choice(_CONTROLS).to_bytes(2, "little")
        return bytes(data)

    def _initial_components(self, data: bytearray, layout: Layout, present: int) -> None:
        """Make some components that are present initial, and leave others a single word."""
        for component in components_in(present & self.source.getrandbits(20)):
            start = layout.offset(component)
            size = layout.size_of(component)
            if component == Component.X87:
                data[0:24] = (0x037F).to_bytes(24, "little")
                data[32:160] = bytes(128)
                continue
            data[start : start + size] = bytes(size)
            if self.source.random() < 0.3:
                data[start + self.source.randrange(size)] = 1

    def _sequence(self, first: int) -> list[Operation]:
        source = self.source
        self._first = first
        operations: list[Operation] = [(Kind.START, 0, 0, 0, 0, self.compared, 0)]
        makers, count = self._makers, len(self._makers)
        for _ in range(_SHORTEST + source.getrandbits(16) % (_LONGEST - _SHORTEST)):
            makers[source.getrandbits(24) % count](operations)
        operations.append((Kind.XSAVE64, 0, 0, 0, 0, self.compared, first + AREAS - 1))
        return operations

    def _weighted(self) -> list[Callable[[list[Operation]], None]]:
        has = self.cpu.has
        saves = [Kind.XSAVE64, Kind.XSAVE64, Kind.XSAVE]
        saves += [Kind.XSAVEC64, Kind.XSAVEC64, Kind.XSAVEC] if has("XSAVEC") else []
        saves += [Kind.XSAVEOPT64, Kind.XSAVEOPT64, Kind.XSAVEOPT] if has("XSAVEOPT") else []
        restores = [Kind.XRSTOR64] * 6 + [Kind.XRSTOR]
        short = [Kind.FXSAVE32, Kind.XSAVE32, Kind.XSAVE32, Kind.FXRSTOR32, Kind.XRSTOR32, Kind.XRSTOR32]
        short += [Kind.XSAVEC32] if has("XSAVEC") else []
        short += [Kind.XSAVEOPT32] if has("XSAVEOPT") else []
        legacy = [Kind.FXSAVE64, Kind.FXSAVE, Kind.FXRSTOR64, Kind.FXRSTOR64, Kind.FXRSTOR]
        privileged = [Kind.XSAVES64, Kind.XRSTORS64] if has("XSAVES") else []
        moves = [(Kind.XMM, 16)]
        if self.xcr0 & mask_of(Component.AVX):
            moves += [(Kind.VXMM, 16), (Kind.VYMM, 16), (Kind.ZERO, 32 if self.xcr0 & AVX512 else 16)]
        if self.xcr0 & AVX512 == AVX512:
            moves += [(Kind.VZMM, 32), (Kind.VZMM, 32)]
            if has("AVX512BW"):
                moves.append((Kind.KMOV, 8))
        resets = [Kind.FNINIT, Kind.FNCLEX, Kind.EMMS]
        if self.xcr0 & mask_of(Component.AVX):
            resets += [Kind.VZEROUPPER, Kind.VZEROALL]
        reads = [Kind.STMXCSR, Kind.FNSTCW, Kind.FNSTSW]

        makers: list[tuple[int, Callable[[list[Operation]], None]]] = [
            (20, self._on_area(saves)),
            (24, self._on_area(restores)),
            (6, self._on_area(legacy)),
            (8, self._on_area(short if self.short else saves)),
            (1, self._on_area(privileged or restores)),
            (14, self._move(moves)),
            (3, self._move([(Kind.MMX, 8)])),
            (6, self._plain(resets)),
            (3, self._plain(reads)),
            (8, self._control),
            (6, self._xgetbv),
            (8, self._edit),
            (4, self._copy),
        ]
        if has("XSAVEOPT"):
            makers.append((5, self._optimised))
        if self.compared & _PKRU:
            makers.append((5, self._keys))
        if self.compared & AMX:
            makers.append((14, self._tiles))
        return [maker for weight, maker in makers for _ in range(weight)]

    def _area(self) -> int:
        return self._first + self.source.getrandbits(16) % AREAS

    def _mask(self) -> int:
        return self.masks[self.source.getrandbits(24) % len(self.masks)]

    def _on_area(self, kinds: list[Kind]) -> Callable[[list[Operation]], None]:
        numbers = [int(kind) for kind in kinds]

        def make(operations: list[Operation]) -> None:
            bits = self.source.getrandbits(32)
            skew = 0 if bits & 63 else (16, 8, 32, 1)[bits >> 6 & 3]
            kind = numbers[(bits >> 8) % len(numbers)]
            operations.append((kind, 0, 0, skew, 0, self._mask(), self._area()))

        return make

    def _move(self, kinds: list[tuple[Kind, int]]) -> Callable[[list[Operation]], None]:
        numbers = [(int(kind), count) for kind, count in kinds]

        def make(operations: list[Operation]) -> None:
            bits = self.source.getrandbits(40)
            kind, count = numbers[(bits >> 20) % len(numbers)]
            where = (bits & 0xFFFF) % (DATA_SIZE - 64)
            operations.append((kind, (bits >> 32) % count, 0, 0, where, 0, 0))

        return make

    def _plain(self, kinds: list[Kind]) -> Callable[[list[Operation]], None]:
        made = [(int(kind), 0, 0, 0, 0, 0, 0) for kind in kinds]

        def make(operations: list[Operation]) -> None:
            operations.append(made[self.source.getrandbits(16) % len(made)])

        return make

    def _control(self, operations: list[Operation]) -> None:
        bits = self.source.getrandbits(48)
        if bits & 1:
            value = _CONTROLS[(bits >> 4) % len(_CONTROLS)] if bits & 2 else bits >> 16 & 0xFFFF
            operations.append((Kind.FLDCW, 0, 0, 0, 0, value, 0))
        else:
            value = _MXCSRS[(bits >> 4) % len(_MXCSRS)] if bits & 2 else bits >> 16 & self.cpu.mxcsr_mask
            operations.append((Kind.LDMXCSR, 0, 0, 0, 0, value, 0))

    def _keys(self, operations: list[Operation]) -> None:
        bits = self.source.getrandbits(40)
        if bits & 3:
            value = _PKRUS[(bits >> 4) % len(_PKRUS)] if bits & 4 else bits >> 8 & 0xFFFF_FFFF
            operations.append((Kind.WRPKRU, 0, 0, 0, 0, value, 0))
        else:
            operations.append((Kind.RDPKRU, 0, 0, 0, 0, 0, 0))

    def _tiles(self, operations: list[Operation]) -> None:
        """One instruction of AMX; a new configuration in most cases, as others need one."""
        bits = self.source.getrandbits(48)
        tile, where, area = bits >> 4 & 7, (bits >> 8) % (DATA_SIZE - _TILE_BYTES), self._area()
        place = 64 * ((bits >> 28) % ((self.area_size - _TILE_BYTES) // 64))
        configure = (Kind.LDTILECFG, 0, 0, 0, 64 * ((bits >> 8) % _CONFIGURATIONS), 0, 0)
        kind = bits & 15
        if kind < 5:
            operations.append(configure)
        elif kind < 7:
            operations.append((Kind.STTILECFG, 0, 0, 0, place, 0, area))
        elif kind < 8:
            operations.append((Kind.TILERELEASE, 0, 0, 0, 0, 0, 0))
        elif kind < 10:
            operations.append((Kind.TILEZERO, tile, 0, 0, 0, 0, 0))
        elif kind < 14:
            operations += [configure] * (kind < 12)
            operations.append((Kind.TILELOADD, tile, 0, 0, where, 0, 0))
        else:
            operations.append((Kind.TILESTORED, tile, 0, 0, place, 0, area))

    def _xgetbv(self, operations: list[Operation]) -> None:
        bits = self.source.getrandbits(8)
        index = 2 if bits < 8 else 0 if bits < 40 else 1
        operations.append((Kind.XGETBV, 0, 0, 0, 0, index, 0))

    def _edit(self, operations: list[Operation]) -> None:
        """Write up to eight bytes: the header, control words, or anywhere."""
        source = self.source
        bits = source.getrandbits(32)
        area = self._area()
        if bits & 7 < 3:
            value = source.getrandbits(20) & self.compared
            operations.append((Kind.EDIT, 0, 8, 0, 512, value, area))
        elif bits & 7 < 4:
            value = (self.compared | 1 << 63) if bits & 8 else 0
            operations.append((Kind.EDIT, 0, 8, 0, 520, value, area))
        elif bits & 7 < 5:
            where = 528 + (bits >> 8) % (8 if bits & 8 else 48)
            operations.append((Kind.EDIT, 0, 1, 0, where, bits >> 16 & 1, area))
        elif bits & 7 < 6:
            operations.append((Kind.EDIT, 0, 4, 0, 24, bits >> 8 & self.cpu.mxcsr_mask, area))
        elif bits & 7 < 7:
            operations.append(
                (Kind.EDIT, 0, 8, 0, 8 * ((bits >> 8) % 4), source.getrandbits(64) | 0x1F80, area)
            )
        else:
            where = (bits >> 8) % (self.area_size - 8)
            operations.append((Kind.EDIT, 0, 8, 0, where, source.getrandbits(64), area))

    def _copy(self, operations: list[Operation]) -> None:
        """Write many bytes at once, into the components."""
        bits = self.source.getrandbits(48)
        length = 1 + (bits & 63)
        where = 576 + 8 * ((bits >> 8) % 200) if bits & 64 else 32 + 8 * ((bits >> 8) % 40)
        where = min(where, self.area_size - 8 * length, 512 - 8 * length if where < 512 else self.area_size)
        if where < 32:
            return
        data = (bits >> 24) % (DATA_SIZE - 1024)
        operations.append((Kind.COPY, 0, length, 0, where, data, self._area()))

    def _optimised(self, operations: list[Operation]) -> None:
        """Restore, perhaps change a register, edit the area, and save there by XSAVEOPT."""
        source = self.source
        area, mask = self._area(), self._mask()
        operations.append((Kind.XRSTOR64, 0, 0, 0, 0, mask, area))
        for maker in source.sample(self._makers, source.getrandbits(2) % 3):
            maker(operations)
        for _ in range(2):
            where = source.choice(self._edited) + 8 * source.getrandbits(3)
            if where < self.area_size - 8:
                operations.append((Kind.EDIT, 0, 8, 0, where, source.getrandbits(64), area))
        operations.append(
            (Kind.XSAVEOPT64, 0, 0, 0, 0, mask if source.getrandbits(2) else self._mask(), area)
        )
