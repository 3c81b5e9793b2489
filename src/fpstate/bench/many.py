"""The section ``many``: round robins over up to a million contexts, where memory is what a switch costs."""

from __future__ import annotations

from array import array
from typing import Any, Final

from .baseline import PLAIN, READ, Slots
from .measured import Measured, Settings
from .quantity import Ratio, worst
from .room import OWN_BYTES, contexts_that_fit, shortage
from .sample import Samples, figures, in_turn
from .state import ALL_BUT_X87, EVERYTHING, TYPICAL, classes, image_of, stretches, visits
from .subject import Core, Ring, cores, make_contexts

ORDERS: Final = ("sequential", "random")
CLASSES: Final = ("SSE", TYPICAL, ALL_BUT_X87, EVERYTHING)
HELD_TO_LIMITS: Final = 100_000
"""From so many contexts on the ratios count."""


def measure(settings: Settings) -> Measured:
    """Measure both cores, as it is, with the successor named, and in one call, beside plain instructions over slots.

    Round robins that there is no room for are named and left out.
    """
    subjects, missing = cores()
    walks, ratios = list[dict[str, Any]](), dict[str, dict[str, Ratio]]()
    masks = classes()
    each = 2 * Slots((image_of(masks[EVERYTHING]),), 1).stride + OWN_BYTES
    for name in (name for name in CLASSES if name in masks):
        for count in settings.many:
            if contexts_that_fit(count, each) < count:
                missing[f"round robins over {count:,} contexts"] = shortage(count, each)
                continue
            slots = Slots((image_of(masks[name]),), count)
            contexts = make_contexts((image_of(masks[name]),), count).contexts
            for order in ORDERS:
                visited = visits(count, settings.many_steps, shuffled=order == "random")
                ring = Ring.of([contexts[index] for index in visited[:count]])
                taken = _walk(slots, ring, subjects, visited, settings)
                walks.append(_row(name, order, count, slots, taken))
                if name == ALL_BUT_X87 and order == "random" and count >= HELD_TO_LIMITS:
                    _judge(taken, f"{name}, {count:,} contexts", ratios)
    if not ratios:
        why = f"no round robin over {HELD_TO_LIMITS:,} contexts was made"
        missing = {**dict.fromkeys(("many.portable", "many.fast", "many.over_read"), why), **missing}
    return Measured({name: worst(cases) for name, cases in ratios.items()}, {"walks": walks}, missing)


def named(name: str) -> str:
    """Return the name of the way where each call names the successor."""
    return f"{name}, next"


def ahead(name: str) -> str:
    """Return the name of the way where one call makes all switches, and looks ahead in the order."""
    return f"{name}, in order"


def _walk(
    slots: Slots, ring: Ring, subjects: list[Core], order: array[int], settings: Settings
) -> dict[str, Samples]:
    steps = settings.many_steps
    starts = stretches(order, steps)
    ways = {
        PLAIN: slots.walk("xsavec", order, starts, steps),
        READ: slots.walk("read", order, starts, steps),
    }
    for core in subjects:
        ways[core.name] = core.walk(ring, "switch", starts, steps)
        ways[named(core.name)] = core.walk(ring, "next", starts, steps)
        ways[ahead(core.name)] = core.walk(ring, "rotate next", starts, steps)
    return in_turn(ways, settings.repeats)


def _row(name: str, order: str, count: int, slots: Slots, taken: dict[str, Samples]) -> dict[str, Any]:
    return {
        "class": name,
        "order": order,
        "contexts": count,
        "slot_bytes": slots.stride,
        "lines": slots.lines,
        "ns": figures(taken),
    }


def _judge(taken: dict[str, Samples], case: str, ratios: dict[str, dict[str, Ratio]]) -> None:
    for name in ("portable", "fast"):
        if ahead(name) in taken:
            ratios.setdefault(f"many.{name}", {})[case] = Ratio(taken[ahead(name)], taken[PLAIN], case)
    if ahead("fast") in taken:
        ratios.setdefault("many.over_read", {})[case] = Ratio(taken[ahead("fast")], taken[READ], case)
