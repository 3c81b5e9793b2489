"""Choices taken from bytes, one after another; past their end every choice is the first, the plain one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

NUMBERS: Final = (
    *(
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        15,
        16,
        63,
        64,
        65,
        107,
        108,
        127,
        128,
        255,
        256,
        511,
        512,
        513,
        575,
        576,
        577,
        832,
    ),
    *(0x1F80, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x10001, 0x602E7, 0x55555554, 0xFFFFF, 0x100000, 0x100001),
    *(
        0x7FFFFFFF,
        0x80000000,
        0xFFFFFFF0,
        0xFFFFFFFF,
        1 << 32,
        1 << 40,
        (1 << 62) + 1,
        (1 << 63) - 1,
        1 << 63,
    ),
    *(1 << 63 | 3, 1 << 63 | 0x602E7, (1 << 64) - 64, (1 << 64) - 8, (1 << 64) - 1),
)
"""Where sizes, masks and counts turn: limits of formats and of integers."""
_STEPS: Final = (1, -1, 4, -4, 8, -8, 64, -64)
_WILDEST: Final = 8
_REPEATS: Final = 6
_LENGTH: Final = 2048


class Draw:
    """A reader of choices. ``odds`` in its methods are of 256.

    ``wild``, up to 8, is how much goes wrong in eighths of what ``odd`` and ``mangled`` are asked for: in a file with
    one thing wrong a reader gets further than in one with twenty. ``main`` is the processor that a file's states are
    of, where it is one. ``repeats`` is how often parts may still be repeated in all: that is what takes the time.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.wild = _WILDEST
        self.main: str | None = None
        self.repeats = _REPEATS

    @classmethod
    def numbered(cls, seed: str, number: int) -> Draw:
        """The choices of one number under a seed."""
        return cls(choices(seed, number))

    def bits(self, size: int) -> int:
        """A number of ``size`` bytes."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(piece, "little")

    def below(self, count: int) -> int:
        """A number from 0 on below ``count``."""
        return self.bits(1 if count <= 256 else 4) % count

    def chance(self, odds: int) -> bool:
        """True in ``odds`` cases of 256; never past the end."""
        return self.bits(1) >= 256 - odds

    def pick(self, values: Sequence[T]) -> T:
        """One of some values, the first past the end."""
        return values[self.below(len(values))]

    def few(self, limit: int) -> int:
        """A small number, seldom ``limit``."""
        return min(limit, (0, 1, 1, 2, 2, 3, 5, limit)[self.below(8)])

    def odd(self, right: int, size: int, odds: int = 5) -> int:
        """``right``, or in ``odds`` cases of 256 what a field of ``size`` bytes should not hold."""
        if not self._wrong(odds):
            return right & (1 << 8 * size) - 1
        way = self.below(4)
        value = (
            right + self.pick(_STEPS)
            if way == 0
            else right ^ 1 << self.below(8 * size)
            if way == 1
            else self.pick(NUMBERS)
        )
        return value & (1 << 8 * size) - 1

    def noise(self, size: int) -> bytes:
        """Random bytes, the same for the same choice."""
        return random.Random(self.bits(2)).randbytes(size)

    def mangled(self, data: bytes, odds: int = 24) -> bytes:
        """The bytes, in ``odds`` cases of 256 with some of them changed, cut out, repeated or put in."""
        if not data or not self._wrong(odds):
            return data
        changed = bytearray(data)
        for _ in range(1 + self.few(6)):
            at = self.below(min(len(changed), self.pick((64, 600, 4096, 1 << 20))) or 1)
            self._change(changed, at)
        return bytes(changed)

    def _wrong(self, odds: int) -> bool:
        return self.bits(2) >= (256 << 8) - (odds << 8) * self.wild // _WILDEST

    def _change(self, changed: bytearray, at: int) -> None:
        way = self.below(6)
        if way == 0:
            changed[at : at + 1] = bytes([self.bits(1)])
        elif way < 3:
            size = self.pick((2, 4, 8))
            at &= -size
            changed[at : at + size] = (self.pick(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif way == 3:
            del changed[at : at + self.pick((1, 4, 8, 64, 576, 1 << 20))]
        elif way == 4:
            changed[at:at] = changed[at : at + self.pick((4, 20, 56, 576))]
        else:
            changed[at:at] = self.noise(self.pick((1, 4, 8, 64)))


def choices(seed: str, number: int) -> bytes:
    """Random choices, the same for the same seed and number."""
    return random.Random(f"{seed} {number}").randbytes(_LENGTH)
