"""All sections as one report, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from . import machine
from .measured import Measured, Settings
from .quantity import QUANTITIES, SECTIONS, WIDE_MARGIN, Quantity, as_json
from .sections import section

SCHEMA: Final = "fpstate-bench/2"
NOT_MEASURED: Final = ("Intel processors",)
"""Nothing is claimed for these."""


def measure(
    names: Collection[str], settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure the named sections, all where none is named, on one processor; raises UnsupportedHere.

    A ratio whose section was not named, or whose peer or processor feature is not there, has the value null and says
    what is missing.
    """
    chosen = [name for name in SECTIONS if not names or name in names]
    processor = machine.pin()
    described, stolen = machine.describe(processor), machine.stolen_ms(processor)
    found: dict[str, Measured] = {}
    for name in chosen:
        progress(name)
        found[name] = section(name, settings)
    after = machine.stolen_ms(processor)
    described["stolen_ms"] = None if stolen is None or after is None else after - stolen
    return {
        "schema": SCHEMA,
        "machine": described,
        "settings": settings.as_json(),
        "sections": chosen,
        "ratios": {quantity.name: _ratio(quantity, found) for quantity in QUANTITIES},
        "missing": {peer: why for measured in found.values() for peer, why in measured.missing.items()},
        "not_measured": list(NOT_MEASURED),
        **{name: measured.details for name, measured in found.items()},
    }


def _ratio(quantity: Quantity, found: dict[str, Measured]) -> dict[str, Any]:
    measured = found.get(quantity.section)
    if measured is None:
        return as_json(quantity, None, f"section {quantity.section} was not asked for")
    why = measured.missing.get(quantity.name, "nothing here to measure it with")
    return as_json(quantity, measured.ratios.get(quantity.name), why)


def beyond(report: dict[str, Any]) -> list[str]:
    """Return the ratios that are beyond their limits even with a wide margin, for a busy machine."""
    return [
        name
        for name, ratio in report["ratios"].items()
        if ratio["value"] is not None and ratio["value"] > ratio["limit"] * WIDE_MARGIN
    ]
