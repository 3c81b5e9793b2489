"""The section ``python``: ``switch(a, b)`` called from Python, the bulk call, and greenlet's switch beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fpstate.errors import UnsupportedHere

from .baseline import PLAIN, Slots
from .measured import Measured, Settings
from .quantity import Ratio, worst
from .runtime_peer import greenlet_switch
from .sample import Samples, figures, in_turn
from .state import ALL_BUT_X87, classes, image_of, stretches, visits
from .subject import Core, cores, make_contexts

GREENLET: Final = "greenlet"
IN_C: Final = "in C"
BULK_CONTEXTS: Final = 16
MOST_CALL_NS: Final = 16.0
"""What the call from Python may add to a switch."""


def measure(settings: Settings) -> Measured:
    """Measure calls from Python on both cores, beside the bare instructions, the C loop, and greenlet."""
    subjects, missing = cores()
    greenlet = _greenlet(missing)
    rows, cases = [], dict[str, dict[str, Samples]]()
    for name, mask in classes().items():
        cases[name] = taken = _class(mask, subjects, greenlet, settings)
        rows.append({"class": name, "mask": hex(mask), "ns": figures(taken)})
    bulk = {core.name: _bulk(core, settings) for core in subjects}
    ratios = _ratios(cases[ALL_BUT_X87], [core.name for core in subjects])
    if (
        "python.switch.portable" in ratios
    ):  # XSAVEC and XRSTOR take x87 as they take the rest: every class counts
        every = {name: Ratio(taken["portable"], taken[PLAIN], name) for name, taken in cases.items()}
        ratios["python.switch.portable"] = worst(every)
    if bulk:
        name, taken = max(bulk.items(), key=lambda item: item[1]["bulk"].min / item[1]["loop in C"].min)
        ratios["python.bulk"] = Ratio(taken["bulk"], taken["loop in C"], name)
    details = {
        "classes": rows,
        "bulk": [
            {"core": name, "contexts": BULK_CONTEXTS, "ns": figures(taken)} for name, taken in bulk.items()
        ],
        "call_overhead": {core.name: _overhead(cases, core.name) for core in subjects},
    }
    return Measured(ratios, details, missing)


def _greenlet(missing: dict[str, str]) -> Callable[[], float] | None:
    try:
        return greenlet_switch()
    except UnsupportedHere as reason:
        missing.update(dict.fromkeys((GREENLET, "greenlet.portable", "greenlet.fast"), reason.missing))
        return None


def _class(
    mask: int, subjects: list[Core], greenlet: Callable[[], float] | None, settings: Settings
) -> dict[str, Samples]:
    image, steps = image_of(mask), settings.steps
    order = visits(2, steps)
    starts, slots = stretches(order, steps), Slots((image, image), 2)
    ways = {PLAIN: slots.walk("xsavec", order, starts, steps)}
    for core in subjects:
        contexts = make_contexts((image, image), 2)
        ways[f"{core.name} {IN_C}"] = core.walk(contexts, "switch", starts, steps)
        ways[core.name] = core.calls(contexts, steps)
    if greenlet is not None:
        ways[GREENLET] = greenlet
    return in_turn(ways, settings.repeats)


def _bulk(core: Core, settings: Settings) -> dict[str, Samples]:
    image = image_of(classes()[ALL_BUT_X87])
    contexts = make_contexts((image,), BULK_CONTEXTS)
    starts = stretches(visits(BULK_CONTEXTS, settings.steps), settings.steps)
    ways = {
        "loop in C": core.walk(contexts, "switch", starts, settings.steps),
        "bulk": core.bulk(contexts, settings.steps),
    }
    return in_turn(ways, settings.repeats)


def _ratios(taken: dict[str, Samples], names: list[str]) -> dict[str, Ratio]:
    found = {f"python.switch.{name}": Ratio(taken[name], taken[PLAIN], ALL_BUT_X87) for name in names}
    if GREENLET in taken:
        found |= {f"greenlet.{name}": Ratio(taken[name], taken[GREENLET], ALL_BUT_X87) for name in names}
    return found


def _overhead(cases: dict[str, dict[str, Samples]], name: str) -> dict[str, Any]:
    """Return what the call adds to the switch in C, in the class where it adds most."""
    added = {case: taken[name].min - taken[f"{name} {IN_C}"].min for case, taken in cases.items()}
    case = max(added, key=lambda key: added[key])
    return {
        "ns": round(added[case], 1),
        "limit": MOST_CALL_NS,
        "met": added[case] <= MOST_CALL_NS,
        "case": case,
    }
