"""Managers and engines of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from engine_runs import cpu_without_xsavec

from fpstate.arch import Component, mask_of
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.engine import missing as missing_for_kvm
from fpstate.engine.native import NativeEngine
from fpstate.errors import UnsupportedHere
from fpstate.vso.manager import Manager

AVX = mask_of(Component.AVX)


@pytest.fixture(params=["compacted", "fast", "standard"])
def manager(native: ModuleType, request: pytest.FixtureRequest) -> Iterator[Manager]:
    """A manager of this processor, with either core, and one that does without XSAVEC."""
    found = native.features()
    if request.param != "standard" and not (found["xsavec"] and found["xgetbv1"]):
        pytest.skip("XSAVEC with XGETBV(1) (CPUID.(0DH,1):EAX[1] and [2])")
    native.core_choice()
    try:
        earlier = native.core_use("fast" if request.param == "fast" else "portable")
    except UnsupportedHere as error:
        pytest.skip(str(error))
    yield Manager(cpu_without_xsavec() if request.param == "standard" else None)
    native.core_use(earlier)


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


@pytest.fixture
def kvm(core: ModuleType) -> Iterator[Callable[..., KvmEngine]]:
    """kvm(manager, class, ...) -> a KVM engine that is closed in the end; no guest runs for more than ten seconds."""
    if lacking := missing_for_kvm():
        pytest.skip(lacking)
    engines: list[KvmEngine] = []

    def make(
        manager: Manager | None = None, kind: type[KvmEngine] = KvmEngine, *, timeout: float = 10, **options
    ) -> KvmEngine:
        engines.append(kind(manager or Manager(), timeout=timeout, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
