"""What a switch costs, in instructions of the core: a gate against regressions that no busy machine can upset.

The figures are near what the code has now; XSAVEC and XRSTOR count as one each, whatever they take. How long it
takes is measured by ``fpstate bench``.
"""

from __future__ import annotations

from types import ModuleType

import pytest
from instruction_count import instructions

from fpstate import Cpu, Layout
from fpstate.errors import FpStateError

SETUP = """
from fpstate import _core
from fpstate._core import switch
from fpstate.bench.state import classes, image_of
from fpstate.bench.subject import Core, make_contexts
image = image_of(classes()[{state!r}])
ring = make_contexts((image, image), 2)
Core({core!r}).use()
one, other = ring.contexts
order = _core.Order([one, other])
"""
WAYS = {
    "loop": "_core.bench_switches(ring.native, 'switch', 0, n)",
    "order": "order.run(n, False)",
    "order, looking ahead": "order.run(n, True)",
    "calls": "for _ in range(n): switch(one, other)",
}
MOST = {
    ("portable", "SSE", "loop"): 75,
    ("portable", "everything", "loop"): 75,
    ("portable", "everything", "order"): 50,
    ("fast", "SSE", "loop"): 190,
    ("fast", "glibc", "loop"): 250,
    ("fast", "all but x87", "loop"): 330,
    ("fast", "everything", "loop"): 300,
    ("fast", "all but x87", "order"): 300,
}
"""By core, class and way: instructions of a switch at the most."""
LINE = 64
MOST_FOR_A_CALL = 60
"""Instructions of the core that a call from Python may add to the same switch in the core's own loop."""


@pytest.fixture
def counted(native: ModuleType):
    """Counts a way on one core; skips what this processor has not."""
    from fpstate.bench.state import classes

    def count(chosen: str, state: str, *ways: str) -> float:
        if state not in classes():
            pytest.skip(f"the components of the class {state} (XCR0)")
        try:
            native.core_use(native.core_use(chosen))
        except FpStateError as error:
            pytest.skip(str(error))
        return instructions(SETUP.format(core=chosen, state=state), "; ".join(WAYS[way] for way in ways))

    return count


@pytest.mark.parametrize("case", MOST, ids=" ".join)
def test_a_switch_takes_no_more_instructions_than_it_did(counted, case):
    assert 0 < counted(*case) <= MOST[case]


def test_a_call_from_python_adds_few(counted):
    in_order, called = (counted("portable", "everything", way) for way in ("order", "calls"))
    assert called - in_order <= MOST_FOR_A_CALL


def test_looking_ahead_fetches_the_lines_of_the_state_ahead(counted):
    from fpstate.bench.state import EVERYTHING, classes

    lines = Layout.compacted(Cpu.host(), classes()[EVERYTHING]).size // LINE
    plain, ahead = (counted("portable", "everything", way) for way in ("order", "order, looking ahead"))
    assert lines - 2 <= ahead - plain <= 8 * lines


def test_a_switch_that_is_made_twice_is_found_out(counted):
    chosen, state, way = case = next(iter(MOST))
    assert counted(chosen, state, way, way) > MOST[case]
