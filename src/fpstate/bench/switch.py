"""The section ``switch``: warm switches in C, for every in-use class and every pair of classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

from fpstate.image import Image

from .baseline import PLAIN, Slots
from .measured import Measured, Settings
from .quantity import Ratio, worst
from .sample import Samples, figures, in_turn
from .state import TYPICAL, X87, classes, image_of, stretches, visits
from .subject import Core, cores, make_contexts

_FEWER: Final = 4
"""Pairs of classes are many: their samples are shorter by this."""


def measure(settings: Settings) -> Measured:
    """Measure both cores beside the bare pair of instructions."""
    found = {name: (mask, image_of(mask)) for name, mask in classes().items()}
    subjects, missing = cores()
    if TYPICAL not in found:
        missing = {"switch.fast.typical": "opmask and Hi16_ZMM (XCR0[5] and XCR0[7])", **missing}
    rows, ratios = [], {core.name: dict[str, Ratio]() for core in subjects}
    for name, (mask, image) in found.items():
        taken = _pair((image, image), subjects, settings.steps, settings.repeats)
        rows.append({"class": name, "mask": hex(mask), "ns": figures(taken)})
        for core in subjects:
            ratios[core.name][name] = Ratio(taken[core.name], taken[PLAIN], name)
    pairs, pair_rows = dict[tuple[str, str], Ratio](), list[dict[str, Any]]()
    for (first, (_, one)), (second, (_, other)) in itertools.combinations_with_replacement(found.items(), 2):
        taken = _pair((one, other), subjects, settings.steps // _FEWER, settings.repeats)
        pair_rows.append({"pair": [first, second], "ns": figures(taken)})
        if "fast" in taken:
            pairs[first, second] = Ratio(taken["fast"], taken[PLAIN], f"{first} and {second}")
    return Measured(_chosen(ratios, pairs), {"classes": rows, "pairs": pair_rows}, missing)


def _pair(
    images: tuple[Image, Image], subjects: Sequence[Core], steps: int, repeats: int
) -> dict[str, Samples]:
    """Switch between two contexts, there and back, by the bare instructions and by each core."""
    order = visits(2, steps)
    starts, slots = stretches(order, steps), Slots(images, 2)
    ways = {PLAIN: slots.walk("xsavec", order, starts, steps)}
    for core in subjects:
        ways[core.name] = core.walk(make_contexts(images, 2), "switch", starts, steps)
    return in_turn(ways, repeats)


def _chosen(ratios: dict[str, dict[str, Ratio]], pairs: dict[tuple[str, str], Ratio]) -> dict[str, Ratio]:
    """Return the worst case of each quantity."""
    chosen: dict[str, Ratio] = {}
    if ratios.get("portable"):
        chosen["switch.portable"] = worst(ratios["portable"])
    if ratios.get("fast"):
        fast, masks = ratios["fast"], classes()
        chosen["switch.fast"] = worst({name: each for name, each in fast.items() if not masks[name] & X87})
        chosen["switch.fast.x87"] = worst({name: each for name, each in fast.items() if masks[name] & X87})
        chosen["switch.fast.worst_pair"] = worst(pairs)
        if TYPICAL in fast:
            chosen["switch.fast.typical"] = fast[TYPICAL]
    return chosen
