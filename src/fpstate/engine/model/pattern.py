"""What scripted contexts keep in their registers: values that are legal, and that tell whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import LEGACY, components_in
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.engine.model.behaviour import Behaviour, Pointers
from fpstate.engine.model.name import components_of
from fpstate.image import Image, initial_value
from fpstate.image.register import REGISTERS, register_named
from fpstate.program.expected.splitmix import stream

Words = Iterator[int]

POINTERS: Final = frozenset({"fop", "fip", "fdp"})
"""No state where a processor loses them while no unmasked x87 exception is pending, as AMD's do."""
_WORD: Final = 8
_FOP_BITS: Final = 0x7FF
_CANONICAL: Final = 17
_PKRU_BITS: Final = 0xFFFF_FFFC
_PASID: Final = 1 << 31
_ROWS, _ROW_BYTES, _TILES = 16, 64, 8


@lru_cache(maxsize=64)
def registers_of(cpu: Cpu, features: int) -> tuple[str, ...]:
    """Return the registers of these components by their widest names, each once; x87's pointers if they are kept."""
    lost = frozenset() if Behaviour.of(cpu).pointers is Pointers.KEPT else POINTERS
    layout = Layout.compacted(cpu, features | LEGACY)
    names = Image.initial(layout).registers.names(widest=True)
    return tuple(name for name in names if name not in lost and components_of(name) & ~features == 0)


@lru_cache(maxsize=256)
def pattern(cpu: Cpu, features: int, seed: int) -> Mapping[str, int]:
    """Return a value for every register of these components: random words, within what XRSTORS takes."""
    words = stream(seed)
    return MappingProxyType({name: _value(name, words) for name in registers_of(cpu, features)})


def initial(cpu: Cpu, features: int) -> Mapping[str, int]:
    """Return the initial value of every register of these components."""
    return {name: initial_value(name) for name in registers_of(cpu, features)}


def by_component(values: Mapping[str, int]) -> tuple[Mapping[str, int], ...]:
    """Split values so that each part touches as few components as can be: a step for each."""
    parts: dict[int, dict[str, int]] = {}
    for name, value in values.items():
        highest = max(components_in(components_of(name)))
        parts.setdefault(highest, {})[name] = value
    return tuple(parts.values())


def _value(name: str, words: Words) -> int:
    special = _SPECIAL.get(name)
    if special:
        return special(words)
    size = REGISTERS[name].size if name in REGISTERS else register_named(name).size
    if name.startswith("st") and size == 10:
        significand = next(words) | 1 << 63
        return (next(words) & 0x7FFE | 1) << 64 | significand
    value = b"".join(next(words).to_bytes(_WORD, "little") for _ in range(-(-size // _WORD)))
    return int.from_bytes(value[:size], "little")


def _tile_configuration(words: Words) -> int:
    """Palette 1 with tiles of random numbers of rows and bytes (SDM vol. 2, LDTILECFG)."""
    data = bytearray(64)
    data[0] = 1
    for tile in range(_TILES):
        word = next(words)
        data[16 + 2 * tile] = 1 + word % _ROW_BYTES
        data[48 + tile] = 1 + (word >> 32) % _ROWS
    return int.from_bytes(data, "little")


def _pointer(words: Words) -> int:
    return next(words) & 0x7FFF_FFFF_FFF8


_SPECIAL: Final[Mapping[str, Callable[[Words], int]]] = MappingProxyType(
    {
        "fctrl": lambda words: 0x037F | next(words) & 0x0C00,
        "fstat": lambda words: next(words) & 0x4700,
        "ftag_abridged": lambda words: 0xFF,
        "mxcsr": lambda words: 0x1F80 | next(words) & 0x603F,
        "fop": lambda words: next(words) & _FOP_BITS,
        **dict.fromkeys(("fip", "fdp"), lambda words: next(words) >> _CANONICAL),
        "pkru": lambda words: next(words) & _PKRU_BITS,
        "pasid": lambda words: _PASID | next(words) & 0xF_FFFF,
        "u_cet": lambda words: next(words) & ~0xFFF | 1,
        "tilecfg": _tile_configuration,
        "uintr_uinv": lambda words: 0x20 + next(words) % 0xE0,
        "uintr_uif": lambda words: next(words) & 0x80,
        **dict.fromkeys(("pl0_ssp", "pl1_ssp", "pl2_ssp", "pl3_ssp"), _pointer),
    }
)
"""Registers that do not take every value."""
