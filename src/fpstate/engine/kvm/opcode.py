"""Which component an instruction needs, where XCR0 forbids it: enough of the encoding to tell #UD from a denial."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from fpstate.arch.component import Component, mask_of

LONGEST: Final = 15
"""Bytes of the longest instruction (SDM vol. 2, 2.3.11)."""
AVX: Final = mask_of(Component.AVX)
AVX512: Final = mask_of(Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM)
TILEDATA: Final = mask_of(Component.TILEDATA)
"""Stands for both components of AMX, which XCR0 has together or not at all."""
_PREFIXES: Final = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67))
_VEX2, _VEX3, _EVEX = 0xC5, 0xC4, 0x62
_MAP_0F, _MAP_0F38 = 1, 2
_OPMASK_0F: Final = frozenset((*range(0x41, 0x4C), *range(0x90, 0x94), 0x98, 0x99))
"""VEX-coded instructions on k0 to k7 in map 0F; KSHIFT* are 30H to 33H in map 0F3A (SDM vol. 2, appendix A)."""
_OPMASK_0F3A: Final = frozenset(range(0x30, 0x34))
_TILES_0F38: Final = frozenset((0x49, 0x4B, 0x5C, 0x5E, 0x6C))
"""VEX.128.W0 in map 0F38: configurations and TILEZERO, loads and stores, and the dot products (SDM vol. 2)."""
_W_OR_256: Final = 0x84


def _any_of(values: Iterable[int]) -> bytes:
    """Return a character class."""
    return b"[" + b"".join(b"\\x%02X" % value for value in values) + b"]"


_VEX_0F38: Final = rb"\xC4[\x02\x22\x42\x62\x82\xA2\xC2\xE2]"
_LOADS_TILES: Final = re.compile(
    _VEX_0F38
    + rb"\x78\x49[\x00-\x07\x40-\x47\x80-\x87]"
    + rb"|\x62[\x00-\xFF][\x00-\x7F][\x00-\xFF]\x49[\x00-\x07\x40-\x47\x80-\x87]"
    + rb"|\x0F\xAE[\x28-\x2F\x68-\x6F\xA8-\xAF]",
    re.DOTALL,
)
"""LDTILECFG, VEX.128.NP.0F38.W0 49 with a memory operand, also as EVEX has it with APX, and XRSTOR: nothing else at
CPL 3 puts a configuration or tiles in use."""
_READS_TILES: Final = re.compile(
    _VEX_0F38
    + rb"(?:\x7A\x4B"
    + _any_of(modrm for modrm in range(0xC0) if modrm & 7 == 4)
    + rb"|"
    + _any_of(vvvv for vvvv in range(256) if not vvvv & _W_OR_256)
    + rb"[\x48\x5C\x5E\x5F\x6B\x6C][\xC0-\xFF])"
    + rb"|\x62[\x00-\xFF][\x00-\x7F][\x00-\xFF][\x4A\x4B\x6D]",
    re.DOTALL,
)
"""TILESTORED, and whatever computes with tiles: VEX.128.W0 in map 0F38. Also EVEX.W0 there: TILESTORED with APX, and
rows of tiles into vectors."""


def denied_component(code: bytes, xcr0: int) -> int | None:
    """Return the first component that an instruction needs and ``xcr0`` lacks; None where that is not its trouble."""
    needed = _needed(code.lstrip(bytes(_PREFIXES)))
    lacking = needed & ~xcr0
    return (lacking & -lacking).bit_length() - 1 if lacking else None


def can_load_tiles(code: bytes) -> bool:
    """Whether an instruction that can put tiles in use stands anywhere in some code, aligned or not."""
    return _LOADS_TILES.search(code) is not None


def can_read_tiles(code: bytes) -> bool:
    """Whether an instruction that reads tiles stands anywhere in some code, aligned or not."""
    return _READS_TILES.search(code) is not None


def _needed(code: bytes) -> int:
    if len(code) < 4:
        return 0
    if code[0] == _EVEX:
        return AVX | AVX512
    if code[0] == _VEX2:
        return AVX | (AVX512 if code[2] in _OPMASK_0F else 0)
    if (
        code[0] == _VEX3
        and code[1] & 0x1F == _MAP_0F38
        and not code[2] & _W_OR_256
        and code[3] in _TILES_0F38
    ):
        return TILEDATA
    if code[0] == _VEX3:
        table = (
            _OPMASK_0F if code[1] & 0x1F == _MAP_0F else _OPMASK_0F3A if code[1] & 0x1F == 3 else frozenset()
        )
        return AVX | (AVX512 if code[3] in table else 0)
    return 0
