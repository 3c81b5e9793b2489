"""Each faulty program goes wrong in its own way, and in no other."""

from __future__ import annotations

import pytest

from fpstate.errors import ProgramError
from fpstate.program import FAULTS, Block
from fpstate.program.block import BLOCK_SIZE, RESULT_SIZE

SIGNALLED = sorted(name for name, fault in FAULTS.items() if fault.signal)


@pytest.mark.parametrize("name", SIGNALLED)
def test_a_fault_raises_its_signal(name, run):
    ended = run(FAULTS[name].load())
    assert ended.operation is None
    assert ended.signal == FAULTS[name].signal


@pytest.mark.parametrize("name", ["endless_loop", "yield_for_ever"])
def test_a_program_that_never_ends_is_stopped_by_the_clock(name, run):
    ended = run(FAULTS[name].load(), milliseconds=100)
    assert ended.signal == "SIGALRM"
    assert (ended.yields > 1) == (name == "yield_for_ever")


@pytest.mark.parametrize("name", ["failed", "reserved_operation", "disorderly_exit", "system_call"])
def test_an_operation_reaches_the_host(name, run):
    ended = run(FAULTS[name].load())
    assert ended.signal is None
    assert ended.operation == FAULTS[name].operation


def test_a_failure_leaves_its_code_in_the_block(run):
    assert run(FAULTS["failed"].load()).status == 0x123


def test_a_claim_of_more_result_than_fits_is_refused():
    block = bytearray(Block(seed=1).to_bytes())
    assert len(block) == BLOCK_SIZE
    block[RESULT_SIZE : RESULT_SIZE + 8] = b"\xff" * 8
    with pytest.raises(ProgramError, match="claims 18446744073709551615 bytes of result"):
        Block.from_bytes(bytes(block))
