"""Hide XSAVEC and XSAVES from every Python in the emulated machine: Bochs 2.7 saves extended components too low.

The kernel's command line hides them from the kernel; CPUID in user mode shows them all the same. XSAVE is right.
The native core is told not to try its cores against XSAVEC.
"""

from __future__ import annotations

import os

if "FPSTATE_HIDE_XSAVEC" in os.environ:
    os.environ.setdefault("FPSTATE_CORE", "portable")

from fpstate import _core

EXTENDED_STATE = (0xD, 1)
XSAVEC_AND_XSAVES = 1 << 1 | 1 << 3

_cpuid, _features = _core.cpuid, _core.features


def cpuid(leaf: int, subleaf: int = 0, /) -> tuple[int, int, int, int]:
    eax, ebx, ecx, edx = _cpuid(leaf, subleaf)
    if (leaf, subleaf) == EXTENDED_STATE:
        return eax & ~XSAVEC_AND_XSAVES, 0, 0, 0
    return eax, ebx, ecx, edx


def features() -> _core.Features:
    return {**_features(), "xsavec": False}


if "FPSTATE_HIDE_XSAVEC" in os.environ:
    _core.cpuid, _core.features = cpuid, features
