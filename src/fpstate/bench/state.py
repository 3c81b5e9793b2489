"""The states that are switched: something in every register of the components of a class."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from typing import Final

from fpstate import _core
from fpstate.arch import Cpu, Layout
from fpstate.arch.component import AMX, COMPONENTS, LEGACY, Component, components_in, mask_of
from fpstate.errors import UnsupportedHere
from fpstate.image import Image
from fpstate.image.tile import MOST_BYTES, MOST_ROWS, TILES
from fpstate.vso.kernel_permission import read_kernel_permission

DATA_REGISTERS: Final = ("st", "xmm", "ymm", "zmm", "k", "tmm")
FILLED: Final = AMX | mask_of(
    *(Component.X87, Component.SSE, Component.AVX),
    *(Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM),
)
"""The components that images here have something in; no class names another one."""
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


def everything(managed: int | None = None, permitted: int | None = None) -> int:
    """Return the components that contexts can have in use here: of those that the core saves, what may be used.

    AMX is among them where the kernel permits this process tiles. ``managed`` and ``permitted`` (None: all) are
    this machine's where ``managed`` is left out.
    """
    if managed is None:
        managed, permitted = _core.features()["managed_mask"], _permitted()
    usable = managed & FILLED
    if permitted is not None and not permitted & mask_of(Component.TILEDATA):
        usable &= ~AMX
    return usable


def classes(managed: int | None = None, permitted: int | None = None) -> dict[str, int]:
    """Return the in-use classes by name; those that this processor lacks components for are left out.

    Takes what ``everything`` takes.
    """
    whole = everything(managed, permitted)
    found = {name: mask for name, mask in _NAMES if not mask & ~whole}
    return {**found, ALL_BUT_X87: whole & ~X87, EVERYTHING: whole}


def image_of(mask: int, cpu: Cpu | None = None) -> Image:
    """Return an image with something in every data register of the components in ``mask``, for this processor."""
    image = Image.initial(Layout.compacted(cpu or Cpu.host(), mask | LEGACY))
    registers = image.registers
    for component in components_in(mask):
        for field in COMPONENTS[component].fields:
            if field.name.startswith(DATA_REGISTERS):
                registers[field.name] = (1 << 8 * field.size - 2) - 1
    if mask & mask_of(Component.TILECFG):
        registers["palette_id"] = 1
        for tile in range(TILES):
            registers[f"tile{tile}_colsb"], registers[f"tile{tile}_rows"] = MOST_BYTES, MOST_ROWS
    return image


def _permitted() -> int | None:
    """What the kernel lets this process use; None where it does not say: then there is nothing to ask for."""
    try:
        return read_kernel_permission().host
    except UnsupportedHere:
        return None


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
