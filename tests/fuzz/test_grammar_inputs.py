"""Inputs that grammars make of every kind of source, through every verb: none breaks what a reader promises."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("google.protobuf", reason="protobuf is not installed (the extra criu)")
pytest.importorskip("zstandard", reason="zstandard is not installed (the extra zstd)")

from grammar.draw import choices
from grammar.kinds import KINDS, SHARES, make
from judge import Judge
from trial import Trial

INPUTS = 262_000 if os.environ.get("FPSTATE_LONG") == "1" else 1_500
SEED = "fixed"
"""Whole, as many as were mutated by hand before; ``make fuzz`` goes on where this ends."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(0 if os.environ.get("FPSTATE_LONG") == "1" else 900)
def test_no_input_breaks_a_promise(kind, core):
    found, answers = [], set()
    with Judge() as judge, Trial(judge) as trial:
        for number in range(round(INPUTS * SHARES[kind])):
            outcome = trial.run(make(kind, choices(f"{SEED} {kind}", number)))
            found += [f"input {number}: {each.key}: {each.text}" for each in outcome.breaks]
            answers |= {code for _, code in outcome.codes}
    assert found == []
    # Files that are read, and files that are not: a grammar of one of them alone shows little.
    assert answers & {0, 1}
    assert 2 in answers


@pytest.mark.parametrize("kind", KINDS)
def test_choices_make_the_same_file_always(kind):
    for number in range(20):
        data = choices("same", number)
        assert make(kind, data) == make(kind, data)


def test_shares_are_a_whole():
    assert sum(SHARES.values()) == pytest.approx(1)
    assert SHARES.keys() == KINDS.keys()
