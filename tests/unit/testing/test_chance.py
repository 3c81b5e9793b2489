"""Tile configurations by chance: legal ones, and ones that are broken in each way."""

from __future__ import annotations

import random

from fpstate.image.tile import CONFIGURATION_SIZE, configuration_problem, is_loaded
from fpstate.testing.chance import tile_configuration

COUNT = 2000


def configurations() -> list[bytes]:
    source = random.Random(1)
    return [tile_configuration(source) for _ in range(COUNT)]


def test_about_half_of_them_are_loaded_as_they_stand():
    made = configurations()
    assert {len(data) for data in made} == {CONFIGURATION_SIZE}
    assert COUNT // 3 < sum(map(is_loaded, made)) < COUNT * 3 // 4


def test_they_break_every_rule_that_configurations_have():
    problems = " ".join(configuration_problem(data) for data in configurations())
    assert all(words in problems for words in ("there is no palette", "reserved byte", " rows of "))
    rows = {data[48 + tile] for data in configurations() for tile in range(8)}
    widths = {
        data[16 + 2 * tile] | data[17 + 2 * tile] << 8 for data in configurations() for tile in range(8)
    }
    assert max(rows) > 16
    assert max(widths) > 64


def test_palette_0_with_something_behind_it_is_among_them():
    """LDTILECFG takes it, and a restore makes it initial."""
    assert any(data[0] == 0 and any(data) and not configuration_problem(data) for data in configurations())
