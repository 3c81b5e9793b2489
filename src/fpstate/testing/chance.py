"""Images broken at random: most of what comes out is illegal, some is not."""

from __future__ import annotations

import random
from typing import Final

from fpstate.arch.component import COMPACTED_BIT
from fpstate.image.subject import MXCSR_AT, RESERVED_AT, SOFTWARE_AT, XCOMP_BV_AT, XSTATE_BV_AT
from fpstate.image.tile import (
    CONFIGURATION_SIZE,
    ELEMENT_SIZE,
    MOST_BYTES,
    MOST_ROWS,
    RESERVED,
    ROWS_AT,
    START_ROW_AT,
    TILES,
    WIDTHS_AT,
)


def mangle(data: bytearray, source: random.Random, *, most: int = 3) -> None:
    """Change up to ``most`` things that rules look at, in place and by chance; the length stays.

    The header's bitmaps and reserved bytes, MXCSR, the words that signal frames keep in the software bytes,
    and the last four bytes, where those have their second magic word.
    """
    for _ in range(source.randint(0, most)):
        source.choice(_CHANCES)(data, source)


def tile_configuration(source: random.Random) -> bytes:
    """Return the 64 bytes of a TILECFG, about every other one such that LDTILECFG takes it.

    The others are broken on purpose: another palette, too many rows, rows too wide, rows of no bytes, reserved
    bytes. Palette 0 with something after it is among them: LDTILECFG takes it, and it means the initial one.
    """
    data = bytearray(CONFIGURATION_SIZE)
    data[0] = 1
    for tile in range(source.randint(0, TILES)):
        data[WIDTHS_AT + 2 * tile] = ELEMENT_SIZE * source.randint(1, MOST_BYTES // ELEMENT_SIZE)
        data[ROWS_AT + tile] = source.randint(1, MOST_ROWS)
    if source.random() < 0.2:
        data[START_ROW_AT] = source.choice((1, 15, 16, 255))
    if source.random() < 0.5:
        source.choice(_TILE_FAULTS)(data, source)
    return bytes(data)


def _no_palette(data: bytearray, source: random.Random) -> None:
    data[0] = source.choice((0, 0, 2, 128, 255))


def _too_many_rows(data: bytearray, source: random.Random) -> None:
    data[ROWS_AT + source.randrange(TILES)] = source.choice((MOST_ROWS + 1, 255))


def _too_wide(data: bytearray, source: random.Random) -> None:
    at = WIDTHS_AT + 2 * source.randrange(TILES)
    data[at : at + 2] = source.choice((MOST_BYTES + 1, 0x4000, 0xFFFF)).to_bytes(2, "little")


def _rows_of_nothing(data: bytearray, source: random.Random) -> None:
    tile = source.randrange(TILES)
    rows = source.choice((0, 1, MOST_ROWS))
    data[ROWS_AT + tile] = rows
    at = WIDTHS_AT + 2 * tile
    data[at : at + 2] = (0 if rows else MOST_BYTES).to_bytes(2, "little")


def _odd_width(data: bytearray, source: random.Random) -> None:
    data[WIDTHS_AT + 2 * source.randrange(TILES)] = source.randrange(256)


def _reserved_of_tiles(data: bytearray, source: random.Random) -> None:
    data[source.choice([at for span in RESERVED for at in range(span.start, span.stop)])] = source.randint(
        1, 255
    )


def _any_tiles(data: bytearray, source: random.Random) -> None:
    data[:] = source.choice((bytes(len(data)), b"\xff" * len(data), source.randbytes(len(data))))


_TILE_FAULTS: Final = (
    _no_palette,
    _too_many_rows,
    _too_wide,
    _rows_of_nothing,
    _odd_width,
    _reserved_of_tiles,
    _any_tiles,
)


def _flip_state(data: bytearray, source: random.Random) -> None:
    data[XSTATE_BV_AT] ^= source.randrange(1, 8)


def _flip_any_state(data: bytearray, source: random.Random) -> None:
    data[XSTATE_BV_AT + source.randrange(8)] ^= 1 << source.randrange(8)


def _no_state(data: bytearray, source: random.Random) -> None:
    data[XSTATE_BV_AT : XSTATE_BV_AT + 8] = source.choice((0, 1, 2, 4, 5, 6, 3)).to_bytes(8, "little")


def _flip_room(data: bytearray, source: random.Random) -> None:
    data[XCOMP_BV_AT] ^= source.randrange(1, 8)


def _flip_any_room(data: bytearray, source: random.Random) -> None:
    data[XCOMP_BV_AT + source.randrange(8)] ^= 1 << source.randrange(8)


def _flip_format(data: bytearray, source: random.Random) -> None:
    word = COMPACTED_BIT | source.choice((0, 1, 3, 4, 7)) if source.random() < 0.7 else 0
    data[XCOMP_BV_AT : XCOMP_BV_AT + 8] = word.to_bytes(8, "little")


def _touch_reserved(data: bytearray, source: random.Random) -> None:
    data[RESERVED_AT + source.randrange(48)] = source.randrange(256)


def _flip_mxcsr(data: bytearray, source: random.Random) -> None:
    data[MXCSR_AT + source.randrange(4)] ^= 1 << source.randrange(8)


def _any_mxcsr(data: bytearray, source: random.Random) -> None:
    value = source.choice((0, 0x1F80, 0x1F81, 0x21F80, 0xFFFF, 0x2FFFF, 0x10000, source.getrandbits(32)))
    data[MXCSR_AT : MXCSR_AT + 4] = value.to_bytes(4, "little")


def _touch_mask(data: bytearray, source: random.Random) -> None:
    data[MXCSR_AT + 4 : MXCSR_AT + 8] = source.getrandbits(32).to_bytes(4, "little")


def _flip_software(data: bytearray, source: random.Random) -> None:
    data[SOFTWARE_AT + source.randrange(20)] ^= 1 << source.randrange(8)


def _any_xfeatures(data: bytearray, source: random.Random) -> None:
    value = source.choice((0, 1, 2, 3, 4, 5, 6, 7, (1 << 64) - 1, source.getrandbits(64)))
    data[SOFTWARE_AT + 8 : SOFTWARE_AT + 16] = value.to_bytes(8, "little")


def _any_size(data: bytearray, source: random.Random) -> None:
    length = len(data)
    value = source.choice(
        (0, 511, 512, 575, 576, 640, length - 4, length, length + 64, source.getrandbits(32))
    )
    data[SOFTWARE_AT + 16 : SOFTWARE_AT + 20] = value.to_bytes(4, "little")


def _touch_end(data: bytearray, source: random.Random) -> None:
    data[len(data) - 1 - source.randrange(4)] ^= 1 << source.randrange(8)


_CHANCES: Final = (
    *(_flip_state, _flip_state, _flip_any_state, _no_state, _flip_room, _flip_any_room, _flip_format),
    *(_touch_reserved, _touch_reserved, _flip_mxcsr, _any_mxcsr, _touch_mask),
    *(_flip_software, _any_xfeatures, _any_size, _touch_end),
)
