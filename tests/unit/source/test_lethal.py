"""Values that are bound to end the thread which has them: on processors with PKRU and tiles, as images."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.image import Image, Registers
from fpstate.source.lethal import dangers, unmasked

CPU = Cpu.catalog("emerald-rapids")
LAYOUT = Layout.standard(CPU, CPU.user_mask)
CONFIGURATION = 1 | 64 << 128 | 16 << 384


def registers(layout: Layout = LAYOUT, **values: int) -> Registers:
    found = Image.initial(layout).copy().registers
    for name, value in ({"pkru": 0x55555554} | values).items():
        if name in found:
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"pkru": 0xFFFFFFFF}, ["pkru 0xffffffff forbids access with key 0", "SIGSEGV"]),
        ({}, {"pkru": 0x55555555}, ["forbids access", "next access"]),
        ({}, {"pkru": 2}, ["forbids writing", "next write"]),
        ({"pkru": 2}, {"pkru": 1}, ["forbids access"]),
        ({}, {"fctrl": 0x37E, "fstat": 1}, ["invalid", "SIGFPE"]),
        ({"fstat": 4}, {"fctrl": 0x37B, "fstat": 4}, ["divide-by-zero"]),
        ({"fctrl": 0x37B}, {"fctrl": 0x37B, "fstat": 0x24}, ["divide-by-zero"]),
        (
            {"tilecfg": CONFIGURATION},
            {"tilecfg": 0},
            ["tilecfg leaves tmm0 without rows or columns", "SIGILL"],
        ),
        (
            {"tilecfg": CONFIGURATION},
            {"tilecfg": 1},
            ["tilecfg leaves tmm0 without rows or columns", "SIGILL"],
        ),
    ],
)
def test_what_ends_a_thread_is_said_with_the_register_first(before, after, said):
    (danger,) = dangers(registers(**before), registers(**after))
    assert danger.split()[0] in {*after}
    assert not [text for text in said if text not in danger]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({}, {"pkru": 0}),
        ({}, {"pkru": 0xFFFFFFFC}),
        ({"pkru": 1}, {"pkru": 0x55555551 | 4}),
        ({}, {"mxcsr": 0x3F}),
        ({}, {"fstat": 0x3F}),
        ({}, {"fctrl": 0x340}),
        ({"fctrl": 0x37B, "fstat": 4}, {"fctrl": 0x37B, "fstat": 4}),
        ({}, {"tilecfg": CONFIGURATION}),
        ({"tilecfg": CONFIGURATION}, {"tilecfg": CONFIGURATION, "xmm3": 5}),
    ],
)
def test_what_does_not_is_not(before, after):
    assert list(dangers(registers(**before), registers(**after))) == []


def test_exceptions_that_a_change_unmasks_are_named():
    assert list(unmasked(registers(), registers(mxcsr=0x1F80, fctrl=0x37F))) == []
    mxcsr, fctrl = unmasked(registers(mxcsr=0x1F80), registers(mxcsr=0x0D80, fctrl=0x37B))
    assert mxcsr.startswith("mxcsr: unmasks divide-by-zero, precision:")
    assert fctrl.startswith("fctrl: unmasks divide-by-zero:")


def test_where_there_is_no_such_register_nothing_is_said():
    legacy = Layout.standard(CPU, mask_of(Component.X87, Component.SSE))
    assert list(dangers(registers(legacy), registers(legacy, fstat=1))) == []
