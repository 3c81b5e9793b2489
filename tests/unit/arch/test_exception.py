"""Which exception a signal was, and what a refused restore says of it."""

from __future__ import annotations

import signal
import struct

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import COMPACTED_BIT
from fpstate.arch.exception import GP, NM, PF, UD, component_at, illegal_image, restore_fault, vector_of
from recorded import INTEL, build

CPU = Cpu.catalog("emerald-rapids")
TILEDATA = mask_of(Component.TILEDATA)
COMPACTED = COMPACTED_BIT | 0x600E7


def recorded_refusals():
    """Signal, si_code, trap number (None: stale), offset and header of each refused XRSTOR in the recordings."""
    for name in INTEL.names("xrstor"):
        file = INTEL.read(name)
        templates = file.templates()
        for case in file.cases:
            if "f" in case["r"]:
                image = build(case["p"], file.pool, max(case["n"], 576), templates[case["t"]])
                yield *case["r"]["f"], case["r"].get("at", 0), *struct.unpack_from("<QQ", image, 512)


def test_every_recorded_refusal_is_told_by_its_exception():
    told = {GP: 0, PF: 0, NM: 0}
    for number, si_code, trap, at, xstate_bv, xcomp_bv in recorded_refusals():
        error = restore_fault(number, si_code, at, xstate_bv, xcomp_bv, cpu=CPU)
        vector = NM if trap is None else trap
        assert error.vector == vector
        assert str(error).startswith(f"XRSTOR raised {error.mnemonic}: ")
        assert error.offset == {PF: at, NM: 512, GP: None}[vector]
        assert error.component == Component.TILEDATA or vector != NM
        told[vector] += 1
    assert min(told.values()) > 100


@pytest.mark.parametrize("stale", [0, 6, 13, 14, 16])
def test_the_trap_number_of_an_earlier_fault_is_not_believed(stale):
    assert vector_of(signal.SIGILL, 1, stale) == NM
    assert vector_of(signal.SIGILL, 2, 6) == UD
    assert vector_of(signal.SIGSEGV, 128, 13) == GP
    assert vector_of(signal.SIGFPE, 7, 16) == 16


@pytest.mark.parametrize(
    ("offset", "xcomp_bv", "component", "name"),
    [
        (11007, 0, 18, "TILEDATA"),
        (2816, 0, 18, "TILEDATA"),
        (2815, 0, 17, "TILECFG"),
        (2688, 0, 9, "PKRU"),
        (1088, 0, 5, "OPMASK"),
        (575, 0, None, "the header"),
        (159, 0, 0, "X87"),
        (27, 0, 1, "SSE"),
        (200, 0, 1, "SSE"),
        (900, 0, None, "no component"),
        (10687, COMPACTED, 18, "TILEDATA"),
        (2432, COMPACTED, 17, "TILECFG"),
        (20000, 0, None, "no component"),
        (600, COMPACTED_BIT | 1 << 40, None, "no component"),
    ],
)
def test_a_page_fault_names_the_byte_and_the_component(offset, xcomp_bv, component, name):
    if xcomp_bv == COMPACTED and offset == 2432:
        assert component_at(2431, xcomp_bv, CPU) == Component.HI16_ZMM
    error = restore_fault(signal.SIGSEGV, 1, offset, 0, xcomp_bv, cpu=CPU)
    assert (error.vector, error.mnemonic, error.offset, error.component) == (PF, "#PF", offset, component)
    assert str(error) == (
        f"XRSTOR raised #PF: byte {offset} of the image is not in memory; {name} lies there"
    )
    assert "last byte of all that it restores" in error.help


def test_a_component_without_permission_is_named_with_what_to_try():
    error = restore_fault(signal.SIGILL, 1, -5, TILEDATA | 0xE7, COMPACTED, cpu=CPU)
    assert (error.vector, error.mnemonic, error.component) == (NM, "#NM", Component.TILEDATA)
    assert "no permission for TILEDATA" in str(error)
    assert "ARCH_REQ_XCOMP_PERM, 18" in error.help
    assert "fpstate run --request tiledata" in error.help


def test_a_processor_without_such_components_names_none():
    error = restore_fault(signal.SIGILL, 1, 0, 0xE7, 0, cpu=Cpu.catalog("zen4"))
    assert (error.mnemonic, error.component, error.help) == ("#NM", None, "")


def test_a_reason_that_is_known_is_told():
    error = restore_fault(signal.SIGSEGV, 128, 0, 0, 0, "MXCSR 0xffffffff at byte 24", 24, cpu=CPU)
    assert error.offset == 24
    assert str(error) == "XRSTOR raised #GP: MXCSR 0xffffffff at byte 24"
    assert "fpstate check" in error.help
    assert str(restore_fault(signal.SIGSEGV, 128, 0, 0, 0, cpu=CPU)).endswith("refuses this image")


@pytest.mark.parametrize(
    ("number", "si_code", "mnemonic"),
    [(signal.SIGBUS, 2, "#PF"), (signal.SIGILL, 2, "#UD"), (signal.SIGFPE, 1, "signal 8")],
)
def test_what_no_xrstor_should_raise_is_told_too(number, si_code, mnemonic):
    assert restore_fault(number, si_code, 0, 0, 0, cpu=CPU).mnemonic == mnemonic


def test_an_image_that_is_not_tried_says_where_and_what():
    error = illegal_image("MXCSR 0xffffffff at byte 24", 24, 0xFFFFFFFF, 0xFFFF, -1)
    assert (error.offset, error.found, error.expected, error.component) == (24, 0xFFFFFFFF, 0xFFFF, None)
    error = illegal_image("component 18", 512, TILEDATA | 3, 3, 18)
    assert error.component == Component.TILEDATA
    assert str(error).startswith("no permission for TILEDATA: XSTATE_BV 0x40003 at byte 512")
    assert "ARCH_REQ_XCOMP_PERM" in error.help
