"""The guard of tests/conftest.py: no test may change what the tests' own process is permitted."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def test_a_test_that_asks_in_the_tests_own_process_is_blamed(request, monkeypatch):
    guard = request.config.pluginmanager.get_plugin(str(CONFTEST))
    guard.pytest_runtest_teardown(request.node)
    before = guard.permitted()
    monkeypatch.setattr(guard, "permitted", lambda: (before or 0) | 1 << 62)
    with pytest.raises(pytest.fail.Exception, match=r"own process changed from 0x\w+ to 0x4\w+"):
        guard.pytest_runtest_teardown(request.node)
    guard.pytest_runtest_teardown(request.node)  # only the first is blamed
    monkeypatch.undo()
    with pytest.raises(pytest.fail.Exception):
        guard.pytest_runtest_teardown(request.node)
