"""The sections by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from . import many, memory, peer_section, python_switch, round_trip, switch
from .measured import Measured, Settings

_SECTIONS: Final[dict[str, Callable[[Settings], Measured]]] = {
    "switch": switch.measure,
    "python": python_switch.measure,
    "many": many.measure,
    "vcpu": round_trip.measure,
    "memory": memory.measure,
    "peers": peer_section.measure,
}


def section(name: str, settings: Settings) -> Measured:
    """Measure one section."""
    return _SECTIONS[name](settings)
