"""The budgets of docs/sources.md are those of the code, each with its amount and its reason."""

from __future__ import annotations

import re

from pages import ROOT

from fpstate.source.budget import ALLOWANCES, MEMORY, MEMORY_SHARE, Allowance

PAGE = (ROOT / "docs" / "sources.md").read_text()
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def amount(text: str) -> int:
    """Return a number as the page writes it: ``64 KiB``, ``16,384``."""
    digits, _, unit = text.strip().partition(" ")
    return int(digits.replace(",", "")) * UNITS.get(unit, 1)


def stated(cell: str) -> tuple[int, int, int | None]:
    """Return what a cell says: fixed, share of n, and bound."""
    both, _, most = cell.partition(", at most ")
    fixed, _, share = both.partition(" + ")
    return amount(fixed), int(share.removesuffix(" n") or 0), amount(most) if most else None


def rows() -> list[tuple[str, ...]]:
    _, _, table = PAGE.partition("| budget | at most | why |\n|---|---|---|\n")
    lines = table.partition("\n\n")[0].splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]


def of(allowance: Allowance) -> tuple[str, int, int, int | None, str]:
    return allowance.name, allowance.fixed, allowance.share, allowance.most, allowance.why


def test_the_table_is_that_of_the_code():
    assert [(name, *stated(cell), why) for name, cell, why in rows()] == [of(each) for each in ALLOWANCES]


def test_the_promise_is_that_of_the_code():
    found = re.search(r"at most (\d+) MiB \+ (\d+) n of memory", PAGE)
    assert found is not None
    assert (int(found[1]) << 20, int(found[2])) == (MEMORY, MEMORY_SHARE)
