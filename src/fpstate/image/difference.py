"""Where two images differ, register by register."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import COMPONENTS, Component, component_name
from fpstate.image.canonical import CanonicalState
from fpstate.image.control import ControlWord, Mxcsr, StatusWord
from fpstate.image.float80 import Float80
from fpstate.image.image import Image
from fpstate.image.register import REGISTERS, widest_names

_DECODED: Final[Mapping[str, Callable[[int], object]]] = {
    "mxcsr": Mxcsr,
    "fctrl": ControlWord,
    "fstat": StatusWord,
    "st": Float80,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One register with its two canonical values."""

    register: str
    a: int
    b: int

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the components in which the two differ: SSE and AVX, say, for a ymm0."""
        register = REGISTERS.get(self.register)
        if register is None:
            return (self.register,)
        names, shift = [], 0
        for part in register.parts:
            if (self.a ^ self.b) >> shift & (1 << 8 * part.size) - 1:
                names.append(component_name(Component.SSE if part.component < 0 else part.component))
            shift += 8 * part.size
        return tuple(dict.fromkeys(names))

    def decoded(self) -> tuple[str, str] | None:
        """Both values with their fields, for registers that have such; None for the others."""
        kind = _DECODED.get(self.register.rstrip("0123456789"))
        return None if kind is None else (str(kind(self.a)), str(kind(self.b)))


def differences(a: Image, b: Image, *, exact: bool = False) -> list[Difference]:
    """Return the registers in which two images differ; none exactly when the images are equal.

    Each difference is stated once, by the widest register that the two layouts hold between them. What a
    layout has no room for counts as initial. A component that has no register names is compared as one
    number. With ``exact``, FOP, FIP and FDP count always.
    """
    states = a.canonical(exact=exact), b.canonical(exact=exact)
    if states[0] == states[1]:
        return []
    registers = a.registers, b.registers
    named = [
        Difference(name, *(each.canonical(name, exact=exact) for each in registers))
        for name in widest_names(a.layout, b.layout)
    ]
    return [each for each in (*named, *_nameless(*states)) if each.a != each.b]


def _nameless(a: CanonicalState, b: CanonicalState) -> Iterator[Difference]:
    values = dict(a.components), dict(b.components)
    for component in sorted((values[0].keys() | values[1].keys()) - COMPONENTS.keys()):
        numbers = (int.from_bytes(each.get(component, b""), "little") for each in values)
        yield Difference(component_name(component), *numbers)
