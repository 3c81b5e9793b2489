"""A guest's SIGILL: denied, undefined, or without a tile configuration. The numbers are those of Emerald Rapids."""

from __future__ import annotations

import random
import signal

import pytest

from fpstate.arch import Component, mask_of
from fpstate.engine.sigill import Fault, denied_component, lacks_tile_configuration
from recorded import INTEL

TILEDATA, TILECFG = mask_of(Component.TILEDATA), mask_of(Component.TILECFG)
XCR0 = 0x602E7
STALE = (0, 6, 13, 14, 16)
"""Trap numbers that a frame had where Linux refused a component: those of the thread's last fault."""


def fault(number: int, si_code: int, trap: int) -> Fault:
    return Fault(number, si_code, trap, 0, 0)


def recorded_faults():
    for name in INTEL.names("sequences"):
        for case in INTEL.read(name).cases:
            yield from (answer["f"] for answer in case["r"] if answer and "f" in answer)


def verdicts(decide) -> tuple[int, int, int]:
    """How many recorded faults were denials, how many were not, and how many ``decide`` took for the other."""
    source, denials, others, wrong = random.Random(1), 0, 0, 0
    for number, si_code, trap in recorded_faults():
        denied = trap is None
        found = decide(fault(number, si_code, source.choice(STALE) if denied else trap))
        denials, others = denials + denied, others + (not denied)
        wrong += found != (Component.TILEDATA if denied else None)
    return denials, others, wrong


def test_every_recorded_fault_is_told_apart():
    denials, others, wrong = verdicts(lambda each: denied_component(each, TILEDATA, XCR0 & ~TILEDATA))
    assert wrong == 0
    assert min(denials, others) > 4000


def test_who_believed_the_trap_number_would_be_wrong():
    """The negative control: #NM is vector 7, and no frame says so."""
    denials, _, wrong = verdicts(lambda each: Component.TILEDATA if each.trap == 7 else None)
    assert wrong == denials > 0
    _, _, wrong = verdicts(lambda each: Component.TILEDATA if each.signal == signal.SIGILL else None)
    assert wrong > 4000


@pytest.mark.parametrize("trap", STALE)
@pytest.mark.parametrize(
    ("si_code", "dynamic", "permitted", "component"),
    [
        (1, TILEDATA, XCR0 & ~TILEDATA, Component.TILEDATA),
        (1, TILEDATA, 0, Component.TILEDATA),
        (1, TILEDATA | 1 << 19, TILEDATA, Component.APX),
        (1, TILEDATA, XCR0, None),
        (1, 0, 0, None),
        (2, TILEDATA, 0, None),
        (-6, TILEDATA, 0, None),
    ],
)
def test_what_is_denied_is_what_the_processor_holds_back_and_nobody_permits(
    trap, si_code, dynamic, permitted, component
):
    assert denied_component(fault(signal.SIGILL, si_code, trap), dynamic, permitted) == component
    assert denied_component(fault(signal.SIGSEGV, si_code, trap), dynamic, permitted) is None


@pytest.mark.parametrize(("si_code", "vector"), [(1, 7), (2, 6)])
def test_the_vector_is_told_by_the_si_code(si_code, vector):
    assert {fault(signal.SIGILL, si_code, trap).vector for trap in STALE} == {vector}


UNDEFINED = fault(signal.SIGILL, 2, 6)
NEEDS_A_CONFIGURATION = {
    "tilezero tmm0": "c4e27b49c0",
    "tileloadd tmm3, [rax+rcx]": "c4e27b4b1c08",
    "tileloaddt1 tmm0, [rax+rcx]": "c4e2794b0408",
    "tilestored [rax+rcx], tmm0": "c4e27a4b0408",
    "tileloadd tmm0, [r8+r9]": "c4827b4b0408",
}
OTHERS = {
    "tilerelease": "c4e27849c0",
    "ldtilecfg [rax]": "c4e2784900",
    "sttilecfg [rax]": "c4e2794900",
    "vaddps ymm0, ymm1, ymm2": "c5f458c2",
    "ud2": "0f0b9090",
    "an end of memory": "c4e2",
    "tilezero with VEX.L": "c4e27f49c0",
    "tilezero with VEX.W": "c4e2fb49c0",
    "another map": "c4e37b49c0",
    "tilezero of memory": "c4e27b4900",
    "tilezero with a second operand": "c4e27349c0",
    "tileloadd of a register": "c4e27b4bc4",
    "tileloadd without an index": "c4e27b4b00",
}


@pytest.mark.parametrize("name", NEEDS_A_CONFIGURATION)
def test_a_tile_instruction_lacks_its_configuration(name):
    code = bytes.fromhex(NEEDS_A_CONFIGURATION[name])
    assert lacks_tile_configuration(UNDEFINED, code, 0x80, XCR0)
    assert not lacks_tile_configuration(UNDEFINED, code, TILECFG, XCR0), "it has one"
    assert not lacks_tile_configuration(UNDEFINED, code, 0x80, 0xE7), "the processor has none of them"
    assert not lacks_tile_configuration(fault(signal.SIGILL, 1, 6), code, 0x80, XCR0), "it is denied"
    assert not lacks_tile_configuration(fault(signal.SIGSEGV, 128, 13), code, 0x80, XCR0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_instructions_are_undefined_for_other_reasons(name):
    assert not lacks_tile_configuration(UNDEFINED, bytes.fromhex(OTHERS[name]), 0, XCR0)
