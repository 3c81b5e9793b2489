"""All sections as one report, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from fpstate.arch import Cpu
from fpstate.errors import UnsupportedHere

from . import machine
from .measured import SCHEMA, Measured, Settings
from .quantity import QUANTITIES, SECTIONS, Quantity, as_json
from .sections import section
from .subject import core_kept

_MAKERS: Final = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}


def measure(
    names: Collection[str], settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure the named sections, all where none is named, on one processor.

    A ratio whose section was not named, or whose peer or processor feature is not there, has the value null and says
    what is missing. Raises UnsupportedHere where nothing of what was asked for can be measured.
    """
    chosen = [name for name in SECTIONS if not names or name in names]
    with machine.pinned() as processor, core_kept():
        described, stolen = machine.describe(processor), machine.stolen_ms(processor)
        found, lacking = _sections(chosen, settings, progress)
        after = machine.stolen_ms(processor)
    described["stolen_ms"] = None if stolen is None or after is None else after - stolen
    return {
        "schema": SCHEMA,
        "machine": described,
        "settings": settings.as_json(),
        "sections": list(found),
        "ratios": {quantity.name: _ratio(quantity, found, lacking) for quantity in QUANTITIES},
        "missing": {
            **lacking,
            **{peer: why for each in found.values() for peer, why in each.missing.items()},
        },
        "not_measured": not_measured(Cpu.host().vendor),
        **{name: measured.details for name, measured in found.items()},
    }


def not_measured(vendor: str) -> list[str]:
    """Return the makers whose processors nothing is claimed for: all but the one of this machine's."""
    return [f"{maker} processors" for known, maker in _MAKERS.items() if known != vendor]


def _sections(
    names: list[str], settings: Settings, progress: Callable[[str], None]
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Measure sections; also return what this machine lacks for those that are left out."""
    found, lacking = dict[str, Measured](), dict[str, str]()
    for name in names:
        progress(name)
        try:
            found[name] = section(name, settings)
        except UnsupportedHere as error:
            lacking[name] = error.missing
    if lacking and not found:
        raise UnsupportedHere(next(iter(lacking.values())))
    return found, lacking


def _ratio(quantity: Quantity, found: dict[str, Measured], lacking: dict[str, str]) -> dict[str, Any]:
    measured = found.get(quantity.section)
    if measured is None:
        return as_json(
            quantity, None, lacking.get(quantity.section, f"section {quantity.section} was not asked for")
        )
    why = measured.missing.get(quantity.name, "nothing here to measure it with")
    return as_json(quantity, measured.ratios.get(quantity.name), why)
