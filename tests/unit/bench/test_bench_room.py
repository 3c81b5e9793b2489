"""No more contexts are made than there is memory for: the machine's, or a control group's."""

from __future__ import annotations

import pytest

from fpstate.bench import room


@pytest.fixture
def machine(tmp_path):
    """A machine with 1 GiB left, and this process in two nested control groups."""
    (tmp_path / "groups" / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n")
    (tmp_path / "group").write_text("0::/outer/inner\n")
    return tmp_path


def left(machine) -> int | None:
    return room.available(machine / "meminfo", machine / "group", machine / "groups")


def limit(machine, group: str, most: str, used: int) -> None:
    (machine / "groups" / group / "memory.max").write_text(f"{most}\n")
    (machine / "groups" / group / "memory.current").write_text(f"{used}\n")


def test_what_the_machine_has_left(machine):
    assert left(machine) == 1 << 30


@pytest.mark.parametrize("group", ["outer", "outer/inner"])
def test_a_control_group_allows_less(machine, group):
    limit(machine, group, "500000", 200000)
    assert left(machine) == 300000


def test_a_control_group_without_a_limit_or_with_a_wide_one_allows_all(machine):
    limit(machine, "outer", "max", 5)
    limit(machine, "outer/inner", str(1 << 40), 5)
    assert left(machine) == 1 << 30


def test_a_group_beyond_its_limit_allows_nothing(machine):
    limit(machine, "outer", "100", 200)
    assert left(machine) == 0


def test_where_nothing_is_told_nothing_is_bounded(tmp_path, monkeypatch):
    assert left(tmp_path) is None
    monkeypatch.setattr(room, "available", lambda: None)
    assert room.contexts_that_fit(1_000_000, 4096) == 1_000_000


def test_as_many_contexts_as_fit_into_a_share_of_what_is_left(monkeypatch):
    monkeypatch.setattr(room, "available", lambda: 1_000_000)
    assert room.contexts_that_fit(1_000, 100) == 1_000
    assert room.contexts_that_fit(1_000_000, 100) == 8_000
    assert room.shortage(20_000, 100) == "20,000 contexts need 2,000,000 bytes, 1,000,000 are available"
