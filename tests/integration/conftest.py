"""Managers and engines of this machine."""

from __future__ import annotations

from types import ModuleType

import pytest
from engine_runs import cpu_without_xsavec

from fpstate.arch import Component, mask_of
from fpstate.engine.native import NativeEngine
from fpstate.vso.manager import Manager

AVX = mask_of(Component.AVX)


@pytest.fixture(params=["compacted", "standard"])
def manager(native: ModuleType, request: pytest.FixtureRequest) -> Manager:
    """A manager of this processor, and one that does without XSAVEC."""
    found = native.features()
    if request.param == "compacted" and not (found["xsavec"] and found["xgetbv1"]):
        pytest.skip("XSAVEC with XGETBV(1) (CPUID.(0DH,1):EAX[1] and [2])")
    return Manager(cpu_without_xsavec() if request.param == "standard" else None)


@pytest.fixture
def engine(manager: Manager) -> NativeEngine:
    """An engine over that manager; no vCPU runs for more than five seconds."""
    return NativeEngine(manager, timeout=5)


@pytest.fixture
def avx(native: ModuleType) -> int:
    """The bit of AVX, where this machine has it."""
    if not native.features()["managed_mask"] & AVX:
        pytest.skip("AVX is not enabled (XCR0[2])")
    return AVX
