"""Engines that let one byte of a context's state reach the context that runs next, and nothing else."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fpstate.arch import Component
from fpstate.image import Image
from fpstate.image.convert import convert
from fpstate.vso.placement import copier

_XSTATE_BV: Final = slice(512, 520)
_ROW, _TILE = 64, 1024


@dataclass(frozen=True)
class Place:
    """A byte of a component, ``at`` from its start (of the image for the legacy ones), and whose ``register`` it is.

    ``source``: where it is taken from, if not from there; ``of_canary`` where it is put into a canary, if elsewhere.
    """

    component: int
    at: int
    register: str
    source: int | None = None
    of_canary: int | None = None


X87, SSE = Component.X87, Component.SSE
PLACES: Final = {
    "x87 control word": Place(X87, 1, "fcw"),
    "x87 status word": Place(X87, 3, "fsw"),
    "x87 tags": Place(X87, 4, "ftw"),
    "x87 opcode": Place(X87, 6, "fop"),
    "x87 instruction pointer": Place(X87, 9, "fip"),
    "x87 data pointer": Place(X87, 18, "fdp"),
    "x87 register": Place(X87, 32 + 16 * 3 + 4, "st3"),
    "MXCSR": Place(SSE, 24, "mxcsr"),
    "SSE": Place(SSE, 160 + 16 * 5 + 9, "mm5"),
    "AVX": Place(Component.AVX, 16 * 6 + 4, "mm6"),
    "OPMASK": Place(Component.OPMASK, 8 * 2 + 3, "k2"),
    "ZMM_HI256": Place(Component.ZMM_HI256, 32 * 7 + 30, "mm7"),
    "HI16_ZMM": Place(Component.HI16_ZMM, 64 * 4 + 33, "mm20"),
    "PKRU": Place(Component.PKRU, 1, "pkru"),
    "TILECFG": Place(Component.TILECFG, 0, "tilecfg", of_canary=48),
    "TILEDATA": Place(Component.TILEDATA, 2 * _TILE + 3 * _ROW + 1, "tmm2"),
    "TILEDATA beyond a tile's shape": Place(Component.TILEDATA, 15 * _ROW + 63, "tmm0", source=8 * _TILE - 1),
}
"""TILECFG: the palette, which alone is a legal configuration; another canary's rows of a tile."""
FRESH, CANARY = "fresh", "canary"


def scattered(seed: int, each: int) -> Iterator[int]:
    """Bytes of TILEDATA: ``each`` of those within every shape, below it, beside it, and both.

    Canaries with shapes of their own use 9 rows of 4 bytes at least, of all tiles but the last.
    """
    chance = random.Random(seed)
    for rows in (range(9), range(9, 16)):
        for columns in (range(4), range(4, _ROW)):
            for _ in range(each):
                yield chance.randrange(7) * _TILE + chance.choice(rows) * _ROW + chance.choice(columns)


SCATTERED: Final = {
    f"TILEDATA byte {at}": Place(Component.TILEDATA, at, f"tmm{at // _TILE}") for at in scattered(18, 3)
}


class OneByteQueue:
    """Runs each vCPU alone for a slice, and hands a byte of its state to the next, where that is ``to``.

    ``inner`` is the queue of a real engine.
    """

    def __init__(self, engine: Any, inner: Any, place: Place, to: str) -> None:
        self.engine, self.inner, self.place, self.to = engine, inner, place, to
        self.ready: deque[Any] = deque()
        self.left: tuple[Image | None, int] = (None, 0)
        self.handed = 0

    def __len__(self) -> int:
        return len(self.ready)

    def add(self, vcpu: Any) -> None:
        self.ready.append(vcpu)

    def clear(self) -> None:
        self.ready.clear()

    def run(self, quantum_ns: int, budget_ns: int, max_slices: int = 0) -> Any:
        """As engines ask for when they are made, for guests that find something out."""
        return next(iter(self.run_slices(quantum_ns, 1)), None)

    def run_slices(self, quantum_ns: int, slices: int) -> list[Any]:
        ended = []
        for _ in range(slices):
            if not self.ready:
                break
            vcpu = self.ready.popleft()
            if self._is_chosen(vcpu):
                self._hand_on(vcpu)
            self.inner.add(vcpu)
            self.inner.run_slices(quantum_ns, 1)
            if vcpu.exit is None:
                self.inner.remove(vcpu)
                self.ready.append(vcpu)
                self.left = vcpu.vso.image().copy(), pkru_of(vcpu)
            else:
                ended.append(vcpu)
                self.left = None, 0
        return ended

    def _is_chosen(self, vcpu: Any) -> bool:
        fresh = vcpu.name == "probe" and vcpu.slices == 0
        return fresh if self.to == FRESH else vcpu.name == "canary" and vcpu.slices > 1

    def _hand_on(self, vcpu: Any) -> None:
        image, pkru = self.left
        bit = 1 << self.place.component
        if self.place.component == Component.PKRU:
            byte = 0xFF << 8 * self.place.at
            if image is not None and pkru & byte:
                set_pkru(vcpu, pkru_of(vcpu) & ~byte | pkru & byte)
                self.handed += 1
        elif image is not None and image.xstate_bv & vcpu.vso.permitted & bit:
            self._put(vcpu, image)

    def _put(self, vcpu: Any, image: Image) -> None:
        place, manager = self.place, self.engine.manager
        layout = manager.config.kernel_layout(self.engine.managed & vcpu.vso.permitted | 3)
        whole = convert(vcpu.vso.image(), layout).image.copy()
        at = place.at if self.to == FRESH or place.of_canary is None else place.of_canary
        source = at if place.source is None else place.source
        byte = image.store.view[start(image.layout, place.component) + source]
        target = start(layout, place.component) + at
        if whole.store.view[target] == byte:
            return
        whole.store.view[target] = byte
        in_use = whole.xstate_bv | 1 << place.component
        whole.store.view[_XSTATE_BV] = in_use.to_bytes(8, "little")
        manager.store(vcpu.vso, in_use, layout, copier(whole))
        vcpu.attach()
        self.handed += 1


def start(layout: Any, component: int) -> int:
    return 0 if component in (X87, SSE) else layout.place(component).offset


def pkru_of(vcpu: Any) -> int:
    return vcpu.core.pkru if hasattr(vcpu, "core") else vcpu.pkru


def set_pkru(vcpu: Any, value: int) -> None:
    if hasattr(vcpu, "core"):
        vcpu.core.pkru = value
    else:
        vcpu.pkru = value
        vcpu.attach()


def one_byte_engine(base: type, place: Place, to: str) -> type:
    """An engine of that type which hands on one byte; ``handed`` counts how often."""

    class LeaksOneByte(base):  # type: ignore[misc]
        def queue(self) -> OneByteQueue:
            self.made = OneByteQueue(self, super().queue(), place, to)
            return self.made

        @property
        def handed(self) -> int:
            return self.made.handed

    return LeaksOneByte


def absent(place: Place, engine: Any) -> str | None:
    """What contexts of an engine lack for it."""
    bit = 1 << place.component
    if engine.offered(engine.manager.permissions.user_mask(engine.kind)) & bit:
        return None
    return f"{Component(place.component).name} in contexts of engine {engine.name}"
