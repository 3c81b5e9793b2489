"""The table of registers by debugger name: of which parts of which components each consists.

Names are gdb's (its ``i386-64bit-*.xml`` target descriptions). Components from AVX on take their registers
from ``fpstate.arch.component``; here stand the legacy region (SDM Vol.1 13.4.1) and the registers that
are put together from several components: ZMMi, i < 16, is SSE, AVX and ZMM_Hi256.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import COMPONENTS, Component
from fpstate.arch.layout import Layout
from fpstate.errors import RegisterError
from fpstate.image.initial import MXCSR_BLOCK


@dataclass(frozen=True, slots=True)
class Part:
    """``size`` bytes from ``offset`` on of a component, counted from the component's start."""

    component: int
    offset: int
    size: int

    def held_by(self, layout: Layout) -> bool:
        """Tell whether a layout has room for this part."""
        if self.component == MXCSR_BLOCK:
            return Component.SSE in layout or (layout.xcomp_bv == 0 and Component.AVX in layout)
        return self.component in layout and self.offset + self.size <= layout.size_of(self.component)


@dataclass(frozen=True, slots=True)
class Register:
    """A register: its parts from the lowest byte up.

    ``view`` marks what other registers state already in another form (full tag word, MMX names); ``metadata``
    what is no state at all (MXCSR_MASK, a property of the processor).
    """

    name: str
    parts: tuple[Part, ...]
    view: bool = False
    metadata: bool = False

    @property
    def size(self) -> int:
        """Bytes of the value: 10 for st0, 64 for zmm0."""
        return 2 if self.name == "ftag" else sum(part.size for part in self.parts)

    def held_by(self, layout: Layout) -> bool:
        """Tell whether a layout has room for every part of this register."""
        return all(part.held_by(layout) for part in self.parts)


def _x87() -> Iterator[Register]:
    def legacy(name: str, offset: int, size: int, *, view: bool = False) -> Register:
        return Register(name, (Part(Component.X87, offset, size),), view)

    for index in range(8):
        yield legacy(f"st{index}", 32 + 16 * index, 10)
    yield from (legacy("fctrl", 0, 2), legacy("fstat", 2, 2))
    yield from (legacy("ftag", 4, 1, view=True), legacy("ftag_abridged", 4, 1), legacy("fop", 6, 2))
    # gdb calls the upper half of the 64-bit pointers the selector: amd64_supply_fxsave.
    yield from (legacy("fip", 8, 8), legacy("fioff", 8, 4), legacy("fiseg", 12, 4))
    yield from (legacy("fdp", 16, 8), legacy("fooff", 16, 4), legacy("foseg", 20, 4))
    for index in range(8):
        yield legacy(f"mm{index}", 32 + 16 * index, 8, view=True)


def _vectors() -> Iterator[Register]:
    yield Register("mxcsr", (Part(MXCSR_BLOCK, 0, 4),))
    yield Register("mxcsr_mask", (Part(MXCSR_BLOCK, 4, 4),), metadata=True)
    parts: dict[int, tuple[Part, ...]] = {}
    for index in range(16):
        parts[index] = (
            Part(Component.SSE, 16 * index, 16),
            Part(Component.AVX, 16 * index, 16),
            Part(Component.ZMM_HI256, 32 * index, 32),
        )
    for index in range(16, 32):
        start = 64 * (index - 16)
        parts[index] = tuple(
            Part(Component.HI16_ZMM, start + offset, size) for offset, size in ((0, 16), (16, 16), (32, 32))
        )
    for prefix, first, last in (("xmm", 0, 1), ("ymm", 0, 2), ("zmm", 0, 3)):
        yield from (Register(f"{prefix}{index}", held[first:last]) for index, held in parts.items())
    for prefix, which in (("ymm", 1), ("zmm", 2)):
        yield from (Register(f"{prefix}{index}h", (held[which],)) for index, held in parts.items())


def _others() -> Iterator[Register]:
    for number, info in COMPONENTS.items():
        if number == Component.TILECFG:
            yield Register("tilecfg", (Part(number, 0, info.size),))
        if number > Component.SSE:
            for field in info.fields:
                yield Register(field.name, (Part(number, field.offset, field.size),))


def _table() -> dict[str, Register]:
    table: dict[str, Register] = {}
    for register in (*_x87(), *_vectors(), *_others()):
        table.setdefault(register.name, register)
    return table


REGISTERS: Final[Mapping[str, Register]] = MappingProxyType(_table())
"""Every register that has a name, in the order in which they are listed."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{"fcw": "fctrl", "fsw": "fstat", "ftw": "ftag_abridged", "mxcsrmask": "mxcsr_mask"},
        **{f"bnd{index}raw": f"bnd{index}" for index in range(4)},
    }
)
"""Other spellings: the manuals', lldb's ``mxcsrmask``, gdb's raw bound registers."""


def register_named(name: str) -> Register:
    """Return the register of a name or alias; raises RegisterError, which suggests names that are close."""
    register = REGISTERS.get(ALIASES.get(name, name))
    if register is None:
        close = difflib.get_close_matches(name.lower(), [*REGISTERS, *ALIASES], n=4)
        raise RegisterError(name, "no such register", help="close: " + ", ".join(close) if close else None)
    return register


@lru_cache(maxsize=64)
def held_names(layout: Layout) -> tuple[str, ...]:
    """Return the names of the registers of which a layout holds every part."""
    return tuple(name for name, register in REGISTERS.items() if register.held_by(layout))


@lru_cache(maxsize=64)
def widest_names(*layouts: Layout) -> tuple[str, ...]:
    """Return names that cover all the state in these layouts exactly once, by the widest registers.

    A register counts when each of its parts is in one of the layouts. Views and metadata are left out.
    """
    covered: dict[int, int] = {}
    chosen = set()
    for register in sorted(REGISTERS.values(), key=lambda register: -register.size):
        if register.view or register.metadata or not _held_together(register.parts, layouts):
            continue
        spans = [(part.component, ((1 << part.size) - 1) << part.offset) for part in register.parts]
        if any(covered.get(component, 0) & span for component, span in spans):
            continue
        for component, span in spans:
            covered[component] = covered.get(component, 0) | span
        chosen.add(register.name)
    return tuple(name for name in REGISTERS if name in chosen)


def _held_together(parts: Iterable[Part], layouts: Iterable[Layout]) -> bool:
    return all(any(part.held_by(layout) for layout in layouts) for part in parts)
