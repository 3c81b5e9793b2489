"""The states that are switched: something in every register of the components of a class."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from typing import Final

from fpstate import _core
from fpstate.arch import Cpu, Layout
from fpstate.arch.component import COMPONENTS, LEGACY, Component, components_in, mask_of
from fpstate.image import Image

DATA_REGISTERS: Final = ("st", "xmm", "ymm", "zmm", "k")
X87: Final = mask_of(Component.X87)
_NAMES: Final = (
    ("initial", 0),
    ("SSE", mask_of(Component.SSE)),
    ("x87+SSE", LEGACY),
    ("x87+SSE+AVX", LEGACY | mask_of(Component.AVX)),
    ("glibc", mask_of(Component.SSE, Component.OPMASK, Component.HI16_ZMM)),
)
TYPICAL: Final = "glibc"
"""What a process has in use that did nothing but call glibc's string functions."""
ALL_BUT_X87: Final = "all but x87"
EVERYTHING: Final = "everything"


def managed() -> int:
    """Return the components that the core saves and restores here."""
    return _core.features()["managed_mask"]


def classes() -> dict[str, int]:
    """Return the in-use classes by name; those that this processor lacks components for are left out."""
    found = {name: mask for name, mask in _NAMES if not mask & ~managed()}
    return {**found, ALL_BUT_X87: managed() & ~X87, EVERYTHING: managed()}


def image_of(mask: int) -> Image:
    """Return an image with something in every data register of the components in ``mask``."""
    image = Image.initial(Layout.compacted(Cpu.host(), mask | LEGACY))
    registers = image.registers
    for component in components_in(mask):
        for field in COMPONENTS[component].fields:
            if field.name.startswith(DATA_REGISTERS):
                registers[field.name] = (1 << 8 * field.size - 2) - 1
    return image


def visits(count: int, steps: int, *, shuffled: bool = False) -> array[int]:
    """Return an order in which contexts are visited: each once, and again until a walk of ``steps`` fits."""
    indices = list(range(count))
    if shuffled:
        random.Random(1).shuffle(indices)
    order = array("I", indices)
    assert order.itemsize == 4
    while len(order) <= steps:
        order += order
    return order


def stretches(order: array[int], steps: int) -> Iterator[int]:
    """Yield where each next walk of ``steps`` begins: on where the last one ended, as the caches remember it."""
    at = 0
    while True:
        if at + steps >= len(order):
            at = 0
        yield at
        at += steps
