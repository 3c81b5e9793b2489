"""What the recorded programs loaded into their registers: the formula of data/README.md, evaluated.

Values are by register name, as ``Image.registers`` has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fpstate.arch import Component, Layout
from fpstate.arch.layout import Place
from fpstate.image import Image, Registers, initial_value
from fpstate.image.register import register_named
from fpstate.source.inference import AMD

X87, SSE, AVX, ZMM_LOW, ZMM_HIGH, OPMASK = (1 << bit for bit in range(6))
MMX, SPECIAL, VZEROUPPER, LDTILECFG, TILELOADD, PKRU, SMALL = (1 << bit for bit in range(6, 13))
TILERELEASE, TILEZERO, POINTERS, PENDING = (1 << bit for bit in range(14, 18))
NOT_BY_FORMULA = MMX | SPECIAL | PENDING
"""Modes whose x87 registers the formula does not give."""
DEFAULT_PKRU = 0x55555554
TILES = range(8)
CONTROL = {"fctrl": "fcw", "fstat": "fsw", "ftag_abridged": "ftw_abridged", "mxcsr": "mxcsr"}
AMX_REGISTERS = frozenset({"tilecfg", *(f"tmm{tile}" for tile in TILES)})

Values = dict[str, int]


def little(text: str) -> int:
    """The number that hexadecimal digits of bytes in memory order are."""
    return int.from_bytes(bytes.fromhex(text), "little")


def vector(thread: int, index: int) -> bytes:
    """The 64 bytes of a vector register."""
    return bytes((64 * thread + 7 * index + 3 * byte + 1) & 0xFF for byte in range(64))


def stack(thread: int, index: int) -> int:
    """ST(index)."""
    data = bytes([0x11 * (index + 1) & 0xFF] * 4 + [index, thread, 0x5A, 0x80 | index])
    return (0x3FFF + index - thread | (index & 1) << 15) << 64 | int.from_bytes(data, "little")


def shape(tile: int, mode: int) -> tuple[int, int]:
    """Rows and bytes of a row of a tile."""
    return (16 - tile, 64 - 4 * tile) if mode & SMALL else (16, 64)


def tile_configuration(mode: int) -> bytes:
    """TILECFG: palette 1 and the shape of each tile."""
    data = bytearray(64)
    data[0] = 1
    for tile in TILES:
        rows, width = shape(tile, mode)
        data[16 + 2 * tile], data[48 + tile] = width, rows
    return bytes(data)


def tile_data(thread: int, tile: int, mode: int) -> bytes:
    """The 1024 bytes of a tile, zeros where its configuration has nothing."""
    rows, width = shape(tile, mode)
    return b"".join(
        bytes(
            (64 * thread + 29 * tile + 13 * row + 5 * column + 7) & 0xFF if column < width else 0
            for column in range(64)
        )
        if row < rows
        else bytes(64)
        for row in range(16)
    )


def loaded(thread: int, mode: int) -> Values:
    """Every register after a run with these ``mode`` bits, x87 left out where the formula does not give it."""
    return {**_x87(thread, mode), **_vectors(thread, mode), **_amx_and_keys(thread, mode)}


def _x87(thread: int, mode: int) -> Values:
    if mode & NOT_BY_FORMULA:
        return {}
    values = {"fctrl": 0x37F, "fstat": 0, "ftag_abridged": 0, **{f"st{index}": 0 for index in range(8)}}
    if mode & X87:
        values = {f"st{index}": stack(thread, index) for index in range(8)}
        values |= {"fctrl": {1: 0x27F, 2: 0xF7F}.get(thread, 0x37F), "fstat": (thread & 7) << 11}
        values["ftag_abridged"] = 0xFF
    if mode & POINTERS:
        values |= {"fop": 0x5A3, "fip": 0x7F1122334455, "fdp": 0x7FFE99AABBCC}
    return values


def _vectors(thread: int, mode: int) -> Values:
    values = {"mxcsr": 0x1F80}
    if mode & (X87 | SSE):
        values["mxcsr"] |= (thread & 3) << 13 | (thread == 3)
    for index in range(32):
        size = 64 if mode & ZMM_LOW else 32 if mode & AVX else 16 if mode & SSE else 0
        size = min(size, 16) if mode & VZEROUPPER else size
        if index >= 16:
            size = 64 if mode & ZMM_HIGH else 0
        values[f"zmm{index}"] = int.from_bytes(vector(thread, index)[:size], "little")
    for index in range(8):
        opmask = 0x0101010101010101 * (index + 1) ^ thread << 56 ^ 1 << 63
        values[f"k{index}"] = opmask if mode & OPMASK else 0
    return values


def _amx_and_keys(thread: int, mode: int) -> Values:
    values = {"pkru": DEFAULT_PKRU ^ (3 << 2 * (thread + 1) if mode & PKRU else 0)}
    configured = mode & LDTILECFG and not mode & TILERELEASE
    values["tilecfg"] = int.from_bytes(tile_configuration(mode), "little") if configured else 0
    for tile in TILES:
        filled = configured and mode & TILELOADD and not mode & TILEZERO
        values[f"tmm{tile}"] = int.from_bytes(tile_data(thread, tile, mode), "little") if filled else 0
    return values


def expectations(folder: Path, program: str) -> list[dict[str, Any]]:
    """The threads of ``expected/PROGRAM.json``, in ascending order of their ids."""
    threads: list[dict[str, Any]] = json.loads((folder / "expected" / f"{program}.json").read_text())[
        "threads"
    ]
    return threads


def stated(thread: Mapping[str, Any]) -> Values:
    """Every register that an expectation states, as exact integers."""
    values = {name: int(thread[key], 16) for name, key in CONTROL.items()}
    values |= {f"st{index}": little(text) for index, text in enumerate(thread["st"])}
    values |= {f"zmm{index}": little(text) for index, text in enumerate(thread["zmm"])}
    values |= {f"k{index}": int(text, 16) for index, text in enumerate(thread["k"])}
    if "pkru" in thread:
        values |= {"pkru": int(thread["pkru"], 16), "tilecfg": little(thread["tilecfg"])}
        values |= {f"tmm{index}": little(text) for index, text in enumerate(thread["tmm"])}
    return values


def with_vectors(values: Mapping[str, int]) -> Values:
    """Registers and those that are the low part of others: XMM and YMM of ZMM."""
    found = dict(values)
    for index in range(32):
        zmm = values.get(f"zmm{index}")
        if zmm is not None:
            found |= {f"xmm{index}": zmm & (1 << 128) - 1, f"ymm{index}": zmm & (1 << 256) - 1}
    return found


def saved(values: Mapping[str, int], xstate_bv: int, *, compacted: bool = False) -> Values:
    """What is left of registers in an image with this XSTATE_BV: the parts of absent components are initial."""
    kept: Values = {}
    for name, value in values.items():
        if name == "mxcsr":
            carriers = 1 << Component.SSE | (0 if compacted else 1 << Component.AVX)
            kept[name] = value if xstate_bv & carriers else 0x1F80
            continue
        at = 0
        kept[name] = initial_value(name)
        for part in register_named(name).parts:
            span = (1 << 8 * part.size) - 1 << at
            if xstate_bv >> part.component & 1:
                kept[name] = kept[name] & ~span | value & span
            at += 8 * part.size
    return kept


def wrong(registers: Registers, expected: Mapping[str, int]) -> list[str]:
    """The names of the registers that an image holds and that are not as expected; values are compared exactly."""
    return [name for name, value in expected.items() if name in registers and registers[name] != value]


def unheld(registers: Registers, expected: Iterable[str]) -> set[str]:
    """The names that an image has no room for."""
    return {name for name in expected if name not in registers}


def outside(names: Iterable[str], mask: int) -> set[str]:
    """Those registers of which a part belongs to a component that a mask lacks."""
    return {
        name
        for name in names
        if any(not mask >> part.component & 1 for part in register_named(name).parts if part.component >= 0)
    }


def amd_layout(layout: Layout) -> Layout:
    """A standard layout with those components that AMD keeps elsewhere at AMD's offsets."""
    places = [Place(p.component, *AMD.get(p.component, (p.offset, p.size))) for p in layout.places]
    return Layout.from_places(layout.format, places, size=layout.size)


def noticed_flips(image: Image, values: Mapping[str, int]) -> int:
    """Flip bits of an image's registers, one after the other: each is noticed, in one register; return how many."""
    count = 0
    for at, bit in _flips(image, values):
        changed = bytearray(image.to_bytes())
        changed[at] ^= 1 << bit
        assert len(wrong(Image(bytes(changed), image.layout).registers, values)) == 1, (at, bit)
        count += 1
    return count


def _flips(image: Image, names: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Byte and bit in an image: the lowest and the highest bit of each present part of these registers."""
    for name in names:
        for part in register_named(name).parts:
            if part.component < 0:
                yield from ((24, 0), (25, 7))  # MXCSR lies among the x87 fields
            elif image.xstate_bv >> part.component & 1:
                start = image.layout.offset(part.component) + part.offset
                yield from ((start, 0), (start + part.size - 1, 7))
