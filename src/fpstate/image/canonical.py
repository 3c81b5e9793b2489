"""The canonical value of a state: what two images are compared by, whatever their layouts.

Only values count. Absent components are initial; FOP, FIP and FDP count only while an unmasked x87 exception
is pending, since AMD processors save zeros or leftovers otherwise (Linux ``X86_BUG_FXSAVE_LEAK``);
ES and B, and FCW's reserved bits, are what a restore makes them; MXCSR_MASK, padding and reserved bytes do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from fpstate.arch.component import COMPONENTS, Component
from fpstate.image.control import ControlWord, StatusWord
from fpstate.image.initial import MXCSR_BLOCK, initial_bytes
from fpstate.image.store import ComponentStore

_STACK = tuple((32 + 16 * index, 10) for index in range(8))
_CONTROL_SIZE = 24
_WHOLE = frozenset({Component.TILECFG})  # tilecfg is one register, its reserved bytes included


@dataclass(frozen=True)
class CanonicalState:
    """The components that are not initial, by number, each with the bytes of its registers.

    Two states are equal when their registers are. ``exact`` states keep FOP, FIP and FDP always, and equal
    only exact ones.
    """

    components: tuple[tuple[int, bytes], ...]
    exact: bool = False

    @property
    def mask(self) -> int:
        """Bitmap of the components that are not initial; bit 1 is set for an MXCSR other than 1F80H too."""
        return sum(1 << component for component, _ in self.components)


def canonical_state(store: ComponentStore, *, exact: bool = False) -> CanonicalState:
    """Return the canonical value of an image; raises ImageError where header and layout disagree."""
    xstate_bv = store.xstate_bv()
    return CanonicalState(tuple(_in_use(store, xstate_bv, exact)), exact)


def pointers_count(control: int, status: int) -> bool:
    """Tell whether FOP, FIP and FDP mean anything: an unmasked x87 exception is pending."""
    return StatusWord(status).pending(ControlWord(control))


def _in_use(store: ComponentStore, xstate_bv: int, exact: bool) -> Iterator[tuple[int, bytes]]:
    for component in sorted({Component.SSE, *(place.component for place in store.layout.places)}):
        if component == Component.SSE:
            value, initial = _sse(store), _SSE_INITIAL
        elif not xstate_bv >> component & 1:
            continue
        elif component == Component.X87:
            value, initial = _x87(store, exact), _X87_INITIAL
        else:
            value, initial = _plain(store, component)
        if value != initial:
            yield component, value


def _x87(store: ComponentStore, exact: bool) -> bytes:
    area = bytearray(store.read(Component.X87, 0, 160))
    control, status = ControlWord(int.from_bytes(area[0:2], "little")), int.from_bytes(area[2:4], "little")
    area[0:2] = int(control.normalised()).to_bytes(2, "little")
    area[2:4] = int(StatusWord(status).recomputed(control)).to_bytes(2, "little")
    area[5] = 0
    if not (exact or StatusWord(status).pending(control)):
        area[6:_CONTROL_SIZE] = bytes(_CONTROL_SIZE - 6)
    return bytes(area[:_CONTROL_SIZE]) + b"".join(area[start : start + size] for start, size in _STACK)


def _sse(store: ComponentStore) -> bytes:
    return store.read(MXCSR_BLOCK, 0, 4) + store.read(Component.SSE, 0, 256)


def _plain(store: ComponentStore, component: int) -> tuple[bytes, bytes]:
    if component not in COMPONENTS:
        # Nothing is known of it but its size, which two processors may state differently: trailing zeros say nothing.
        return store.read_all(component).rstrip(b"\0"), b""
    spans = register_spans(component)
    value = b"".join(store.read(component, offset, size) for offset, size in spans)
    return value, b"".join(initial_bytes(component, offset, size) for offset, size in spans)


@cache
def register_spans(component: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, size) of the runs of registers in a component, neighbours joined.

    What lies between them is padding. Empty for a component that has no register names.
    """
    info = COMPONENTS.get(component)
    if info is None:
        return ()
    if component in _WHOLE:
        return ((0, info.size),)
    spans: list[tuple[int, int]] = []
    for field in info.fields:
        if spans and sum(spans[-1]) == field.offset:
            spans[-1] = (spans[-1][0], spans[-1][1] + field.size)
        else:
            spans.append((field.offset, field.size))
    return tuple(spans)


_X87_INITIAL = initial_bytes(Component.X87, 0, _CONTROL_SIZE + 80)
_SSE_INITIAL = initial_bytes(MXCSR_BLOCK, 0, 4) + initial_bytes(Component.SSE, 0, 256)
