"""Images broken at random: most of what comes out is illegal, some is not."""

from __future__ import annotations

import random
from typing import Final

from fpstate.arch.component import COMPACTED_BIT
from fpstate.image.subject import MXCSR_AT, RESERVED_AT, SOFTWARE_AT, XCOMP_BV_AT, XSTATE_BV_AT


def mangle(data: bytearray, source: random.Random, *, most: int = 3) -> None:
    """Change up to ``most`` things that rules look at, in place and by chance; the length stays.

    The header's bitmaps and reserved bytes, MXCSR, the words that signal frames keep in the software bytes,
    and the last four bytes, where those have their second magic word.
    """
    for _ in range(source.randint(0, most)):
        source.choice(_CHANCES)(data, source)


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
