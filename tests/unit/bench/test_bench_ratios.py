"""Samples are taken in turn; ratios are of the least, held to the documented limits, and state what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fpstate.bench.quantity import QUANTITIES, SECTIONS, WIDE_MARGIN, Quantity, Ratio, as_json, beyond, worst
from fpstate.bench.sample import LEAST_REPEATS, Samples, in_turn

LIMITS = {
    "switch.portable": 1.05,
    "switch.fast": 0.35,
    "switch.fast.typical": 0.20,
    "switch.fast.x87": 0.80,
    "switch.fast.worst_pair": 1.05,
    "python.switch.portable": 1.15,
    "python.switch.fast": 0.45,
    "python.bulk": 1.03,
    "many.portable": 0.60,
    "many.fast": 0.45,
    "many.over_read": 1.6,
    "greenlet.portable": 1.0,
    "greenlet.fast": 0.4,
    "vcpu.portable": 1.6,
    "vcpu.fast": 0.8,
    "memory.million": 0.35,
}
QUANTITY = Quantity("switch.fast", 0.35, "switch", "this / that")


def ratio(ours: tuple[float, ...], theirs: tuple[float, ...] = (10.0, 30.0, 20.0)) -> Ratio:
    return Ratio(Samples(ours), Samples(theirs), "a case")


def test_every_way_takes_its_turn_in_every_round():
    turns = []
    taken = in_turn({name: lambda name=name: turns.append(name) or len(turns) for name in "abc"}, 4)
    assert "".join(turns) == "abc" * 5
    assert taken["b"].values == (5, 8, 11, 14), "the first round warms up and does not count"


def test_figures_are_the_least_and_the_median():
    assert Samples((5.0, 1.0, 9.0, 3.0)).as_json() == {"min": 1.0, "median": 4.0}
    assert LEAST_REPEATS == 30


def test_the_limits_are_those_that_were_set():
    assert {quantity.name: quantity.limit for quantity in QUANTITIES} == LIMITS
    assert {quantity.section for quantity in QUANTITIES} < set(SECTIONS)


@pytest.mark.parametrize(("least", "met"), [(3.5, True), (3.6, False)])
def test_a_ratio_is_of_the_least_and_met_up_to_its_limit(least, met):
    stated = as_json(QUANTITY, ratio((30.0, least, 20.0)), "")
    assert stated["value"] == least / 10
    assert stated["median"] == 1.0
    assert stated["met"] is met


def test_the_worst_case_is_the_one_that_is_stated():
    assert worst({"a": ratio((1.0,)), "b": ratio((3.0,)), "c": ratio((2.0,))}).value == 0.3


def test_what_cannot_be_measured_has_no_value_and_says_why():
    stated = as_json(QUANTITY, None, "needs a peer")
    assert (stated["value"], stated["met"], stated["missing"]) == (None, None, "needs a peer")


def test_the_gate_has_a_wide_margin():
    just, far = QUANTITY.limit * WIDE_MARGIN, QUANTITY.limit * WIDE_MARGIN * 1.01
    ratios = {
        name: {"value": value, "limit": QUANTITY.limit}
        for name, value in {"good": 0.3, "missed": just, "far off": far, "missing": None}.items()
    }
    assert beyond({"ratios": ratios}) == ["far off"]


def test_the_page_states_the_limits():
    page = (Path(__file__).parents[3] / "docs" / "performance.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `([\w.]+)` \|[^|]*\|[^|]*\| ([\d.]+) \|", page, re.MULTILINE))
    assert {name: float(limit) for name, limit in stated.items()} == LIMITS


@pytest.mark.parametrize(
    ("vendor", "others"),
    [
        ("AuthenticAMD", ["Intel processors"]),
        ("GenuineIntel", ["AMD processors"]),
        ("HygonGenuine", ["Intel processors", "AMD processors"]),
    ],
)
def test_nothing_is_claimed_for_processors_of_other_makers(vendor, others):
    report = pytest.importorskip(
        "fpstate.bench.report", reason="the native core (fpstate._core) is not built"
    )
    assert report.not_measured(vendor) == others
