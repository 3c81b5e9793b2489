"""The worst inputs known end soon and in little memory, in an answer or an error of ours, in every verb."""

from __future__ import annotations

import pytest

pytest.importorskip("zstandard", reason="zstandard is not installed (the extra zstd)")
pytest.importorskip("google.protobuf", reason="protobuf is not installed (the extra criu)")

from judge import Judge
from trial import Trial
from worst import WORST


@pytest.mark.parametrize("worst", WORST, ids=lambda worst: worst.name)
def test_the_worst_keep_every_promise(worst, core):
    with Judge() as judge, Trial(judge) as trial:
        outcome = trial.run(worst.made())
    assert [f"{each.key}: {each.text}" for each in outcome.breaks] == []
    assert {code for _, code in outcome.codes} <= worst.codes
