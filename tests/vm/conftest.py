"""KVM as the tests ask for it: skipped where /dev/kvm, or what they need of it, is missing, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from supervisor_guest import SupervisorGuest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.engine.kvm.abi import CPUID_ENTRY, CPUID_HEADER
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine
from fpstate.errors import UnsupportedHere

AVX = mask_of(Component.AVX)
XSAVE_LEAF = 0xD

Restrict = Callable[[int], bytearray]


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
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


def with_components(table: bytearray, mask: int) -> bytearray:
    """Return a struct kvm_cpuid2 with CPUID.(0DH,0):EDX:EAX reduced to ``mask``."""
    count, _ = CPUID_HEADER.unpack_from(table)
    for index in range(count):
        at = CPUID_HEADER.size + index * CPUID_ENTRY.size
        function, subleaf, flags, eax, ebx, ecx, edx = CPUID_ENTRY.unpack_from(table, at)
        if (function, subleaf) == (XSAVE_LEAF, 0):
            values = (eax & mask, ebx, ecx, edx & mask >> 32)
            CPUID_ENTRY.pack_into(table, at, function, subleaf, flags, *values)
    return table


def components_of(table: bytearray) -> int:
    """Return CPUID.(0DH,0):EDX:EAX of a struct kvm_cpuid2."""
    eax, _, _, edx = leaf_of(table, XSAVE_LEAF, 0)
    return eax | edx << 32


def leaf_of(table: bytearray, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """Return EAX, EBX, ECX, EDX of one entry of a struct kvm_cpuid2."""
    count, _ = CPUID_HEADER.unpack_from(table)
    for index in range(count):
        at = CPUID_HEADER.size + index * CPUID_ENTRY.size
        function, number, _, *registers = CPUID_ENTRY.unpack_from(table, at)
        if (function, number) == (leaf, subleaf):
            eax, ebx, ecx, edx = registers
            return eax, ebx, ecx, edx
    raise LookupError(f"no CPUID leaf {leaf:#x}.{subleaf}")
