"""What is held to a limit: the ratios, and how large each may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .sample import Samples

WIDE_MARGIN: Final = 1.5
"""``--gate`` fails a ratio only beyond its limit times this: the machine may be busy."""


@dataclass(frozen=True)
class Quantity:
    """One ratio: its name in ``--json``, its limit, the section that measures it, and in words what is over what."""

    name: str
    limit: float
    section: str
    what: str


QUANTITIES: Final = (
    Quantity("switch.portable", 1.05, "switch", "portable switch in C / bare XSAVEC+XRSTOR, worst class"),
    Quantity("switch.fast", 0.35, "switch", "fast switch in C, x87 not in use / the same, worst class"),
    Quantity("switch.fast.typical", 0.20, "switch", "fast switch in C, in use what glibc has / the same"),
    Quantity("switch.fast.x87", 0.80, "switch", "fast switch in C, x87 in use / the same, worst class"),
    Quantity("switch.fast.worst_pair", 1.05, "switch", "fast switch in C / the same, worst pair of classes"),
    Quantity(
        "python.switch.portable",
        1.15,
        "python",
        "Python's switch(a, b), portable / bare XSAVEC+XRSTOR, worst class",
    ),
    Quantity("python.switch.fast", 0.45, "python", "Python's switch(a, b), fast / bare XSAVEC+XRSTOR"),
    Quantity("python.bulk", 1.03, "python", "round robin by one call from Python / loop in C, worse core"),
    Quantity("many.portable", 0.60, "many", "portable, in order by one call / plain XSAVEC+XRSTOR, random"),
    Quantity("many.fast", 0.45, "many", "fast, in order by one call / plain XSAVEC+XRSTOR, random"),
    Quantity("many.over_read", 1.6, "many", "fast, in order by one call / merely reading the lines, random"),
    Quantity("greenlet.portable", 1.0, "python", "Python's switch(a, b), portable / greenlet's switch"),
    Quantity("greenlet.fast", 0.4, "python", "Python's switch(a, b), fast / greenlet's switch"),
    Quantity("vcpu.portable", 1.6, "vcpu", "vCPU round trip, portable / bare XSAVEC+XRSTOR, worst class"),
    Quantity("vcpu.fast", 0.8, "vcpu", "vCPU round trip, fast, all but x87 / bare XSAVEC+XRSTOR"),
    Quantity(
        "memory.million",
        0.35,
        "memory",
        "resident bytes of 1,000,000 mixed contexts, parked / of static blobs",
    ),
)
SECTIONS: Final = ("switch", "python", "many", "vcpu", "memory", "peers")
"""In the order in which they are measured; ``peers`` has no ratio of its own."""


@dataclass(frozen=True)
class Ratio:
    """A quantity as measured: ours over theirs, each the least of its samples; where it was worst, by ``case``."""

    ours: Samples
    theirs: Samples
    case: str
    unit: str = "ns"

    @property
    def value(self) -> float:
        """The ratio of the least."""
        return self.ours.min / self.theirs.min

    @property
    def median(self) -> float:
        """The ratio of the medians."""
        return self.ours.median / self.theirs.median


def worst(ratios: Mapping[Any, Ratio]) -> Ratio:
    """Return the largest of several cases."""
    return max(ratios.values(), key=lambda ratio: ratio.value)


def as_json(quantity: Quantity, ratio: Ratio | None, missing: str) -> dict[str, Any]:
    """Return a ratio with its limit and both its sides; ``value`` is null where something was ``missing``."""
    stated: dict[str, Any] = {
        "what": quantity.what,
        "limit": quantity.limit,
        "command": f"fpstate bench {quantity.section} --json",
    }
    if ratio is None:
        return {"value": None, "met": None, "missing": missing, **stated}
    value = round(ratio.value, 3)
    return {
        "value": value,
        "met": value <= quantity.limit,
        **stated,
        "median": round(ratio.median, 3),
        "case": ratio.case,
        "unit": ratio.unit,
        "ours": ratio.ours.as_json(),
        "theirs": ratio.theirs.as_json(),
    }


def beyond(report: dict[str, Any]) -> list[str]:
    """Return the ratios that are beyond their limits even with a wide margin, for a busy machine."""
    return [
        name
        for name, ratio in report["ratios"].items()
        if ratio["value"] is not None and ratio["value"] > ratio["limit"] * WIDE_MARGIN
    ]
