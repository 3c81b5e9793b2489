"""KVM as the tests ask for it: skipped where /dev/kvm, or what they need of it, is missing, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
from guest_cpuid import components_of, with_components
from supervisor_guest import SupervisorGuest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine
from fpstate.errors import UnsupportedHere

AVX = mask_of(Component.AVX)

Restrict = Callable[[int], bytearray]


@pytest.fixture(scope="session")
def device(core: ModuleType) -> Iterator[Device]:
    try:
        device = Device()
    except UnsupportedHere as error:
        pytest.skip(f"KVM: {error}")
    with device:
        yield device


@pytest.fixture(scope="session")
def supported(device: Device) -> int:
    """The XCR0 that KVM lets guests have."""
    xcr0 = device.supported_xcr0
    if xcr0 is None:
        pytest.skip("KVM_X86_XCOMP_GUEST_SUPP is missing (before Linux 5.17)")
    return xcr0


@pytest.fixture(scope="session")
def cpu(device: Device) -> Cpu:
    return Cpu.host()


@pytest.fixture
def machine(device: Device) -> Iterator[Machine]:
    with Machine(device) as machine:
        yield machine


@pytest.fixture
def vcpu(machine: Machine) -> KvmVcpu:
    """A vCPU that was told all that KVM supports."""
    return machine.vcpu()


@pytest.fixture
def bare_vcpu(machine: Machine) -> Iterator[KvmVcpu]:
    """A vCPU that was not told its CPUID."""
    vcpu = KvmVcpu(machine, 0)
    yield vcpu
    vcpu.close()


@pytest.fixture(scope="session")
def runs_at_cpl0(device: Device) -> None:
    """KVM that runs guests at CPL 0 and not only interprets them."""
    with Machine(device) as machine:
        guest = SupervisorGuest(machine, machine.vcpu())
        left = guest.run("xgetbv", "addps xmm0, xmm1")
    if left.reason != "done":
        pytest.skip(f"this KVM does not execute xgetbv and addps at CPL 0 (exit: {left.reason})")


@pytest.fixture(scope="session")
def has_avx(supported: int) -> None:
    if not supported & AVX:
        pytest.skip("AVX is not among the components that KVM supports here")


@pytest.fixture
def guest(runs_at_cpl0: None, machine: Machine, vcpu: KvmVcpu) -> SupervisorGuest:
    """A guest at CPL 0 with all that KVM supports."""
    return SupervisorGuest(machine, vcpu)


@pytest.fixture(scope="session")
def restricted(device: Device, supported: int) -> Restrict:
    """Make a CPUID table whose leaf 0DH has only these components; skipped where KVM puts others in."""

    def restrict(mask: int) -> bytearray:
        return with_components(device.supported_cpuid(), mask)

    with Machine(device) as machine:
        seen = components_of(machine.vcpu(cpuid=restrict(3)).cpuid())
    if seen != 3:
        pytest.skip(f"this KVM overrides leaf 0DH of a guest: 3 was set and reads back {seen:#x}")
    return restrict
