"""``--request``: components that Linux gives on request, asked for before the contexts of a run are made."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Final

from fpstate.arch.component import USER_DYNAMIC, Component, component_name, mask_names
from fpstate.arch.cpu import Cpu
from fpstate.errors import UnsupportedHere
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind

_NEEDED: Final = {
    Component.TILEDATA: (
        ("AMX_TILE", "AMX (CPUID.(07H,0):EDX[24])"),
        ("XFD", "IA32_XFD (CPUID.(0DH,1):EAX[4])"),
    )
}
"""What a processor must have, by the name of the flag, so that Linux gives a dynamic component."""


def components(text: str) -> list[Component]:
    """Read a comma-separated list of component names, in any case."""
    return [_component(name.strip()) for name in text.split(",")]


def _component(name: str) -> Component:
    try:
        return Component[name.upper()]
    except KeyError:
        known = ", ".join(each.lower() for each in mask_names(USER_DYNAMIC))
        raise argparse.ArgumentTypeError(f"no component {name!r}; given on request: {known}") from None


def request(manager: Manager, wanted: Iterable[Component], kind: Kind) -> None:
    """Permit VSOs of a kind these components; the engine asks the kernel for what a VSO is permitted.

    Raises UnsupportedHere with what the processor or its kernel lacks, and what ``Manager.request`` raises.
    """
    for component in wanted:
        if USER_DYNAMIC >> component & 1 and not manager.config.user_max.features >> component & 1:
            raise UnsupportedHere(lacking(manager.config.cpu, component), help="see: fpstate cpu")
        manager.request(component, kind)


def lacking(cpu: Cpu, component: Component) -> str:
    """Return what a processor lacks for a dynamic component."""
    name = component_name(component)
    missing = [what for flag, what in _NEEDED.get(component, ()) if not cpu.has(flag)]
    return f"{name} needs {' and '.join(missing) or f'XCR0[{int(component)}], which the kernel left off'}"
