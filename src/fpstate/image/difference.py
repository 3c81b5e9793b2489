"""Where two images differ, register by register."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fpstate.arch.component import COMPONENTS, component_name
from fpstate.image.canonical import CanonicalState
from fpstate.image.image import Image
from fpstate.image.register import widest_names


@dataclass(frozen=True, slots=True)
class Difference:
    """One register with its two canonical values."""

    register: str
    a: int
    b: int


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
