"""Guests whose CPUID has fewer components than KVM: what is hidden, what is refused, what is kept all the same.

Sources: KVM ``arch/x86/kvm/cpuid.c`` (``kvm_vcpu_after_set_cpuid``, ``kvm_update_cpuid_runtime``) and ``x86.c``
(``kvm_vcpu_ioctl_x86_get_xsave2``, ``kvm_load_guest_xsave_state``).
"""

from __future__ import annotations

import errno

import pytest
from guest_cpuid import XSAVE_LEAF, components_of, leaf_of
from supervisor_guest import SupervisorGuest

from fpstate.arch import Component, Layout, mask_of
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.transfer import LoadRefused, load, save
from fpstate.errors import KvmError
from fpstate.image import Image
from fpstate.testing import random_image

LEGACY, WITH_AVX, WITHOUT_XSAVE = 3, 7, 0
AVX = mask_of(Component.AVX)
XSTATE_BV = slice(512, 520)
AVX_AT = slice(576, 832)


@pytest.fixture
def legacy_vcpu(has_avx, restricted, machine):
    """A vCPU whose CPUID has x87 and SSE alone."""
    return machine.vcpu(cpuid=restricted(LEGACY))


@pytest.fixture
def avx_state(cpu, supported, device):
    """A state in which x87, SSE and AVX are in use, as KVM_SET_XSAVE takes it."""
    layout = Layout.standard(cpu, supported)
    image = random_image(layout, 11, present=WITH_AVX, mxcsr_mask=cpu.mxcsr_mask)
    return bytearray(image.to_bytes().ljust(device.xsave_size, b"\0"))


def xstate_bv(data):
    return int.from_bytes(data[XSTATE_BV], "little")


def test_the_guest_sees_the_components_that_it_was_told(legacy_vcpu):
    assert components_of(legacy_vcpu.cpuid()) == LEGACY


def test_a_component_that_the_guest_lacks_is_taken_and_not_given_back(legacy_vcpu, avx_state):
    """KVM_SET_XSAVE asks what KVM supports and not what the guest has; KVM_GET_XSAVE the other way round."""
    legacy_vcpu.set_xsave(avx_state)
    found = legacy_vcpu.xsave()
    assert xstate_bv(found) & WITH_AVX == LEGACY
    assert not any(found[AVX_AT])
    assert found[160:416] == avx_state[160:416]


def test_the_same_component_is_given_back_where_the_guest_has_it(has_avx, restricted, machine, avx_state):
    """The control."""
    vcpu = machine.vcpu(cpuid=restricted(WITH_AVX))
    vcpu.set_xsave(avx_state)
    found = vcpu.xsave()
    assert xstate_bv(found) & WITH_AVX == WITH_AVX
    assert found[AVX_AT] == avx_state[AVX_AT]


def test_what_was_hidden_comes_to_light_when_the_guest_is_told_of_it(legacy_vcpu, restricted, avx_state):
    """It was hidden and not dropped: state that a guest must not have stays in the vCPU until it is overwritten."""
    legacy_vcpu.set_xsave(avx_state)
    legacy_vcpu.set_cpuid(restricted(WITH_AVX))
    found = legacy_vcpu.xsave()
    assert xstate_bv(found) & AVX
    assert found[AVX_AT] == avx_state[AVX_AT]


def test_xcr0_takes_what_the_guest_has(legacy_vcpu):
    legacy_vcpu.set_xcr0(LEGACY)
    with pytest.raises(KvmError) as refused:
        legacy_vcpu.set_xcr0(WITH_AVX)
    assert refused.value.errno == errno.EINVAL
    assert legacy_vcpu.xcr0() == LEGACY


def test_a_guest_without_avx_cannot_execute_it(runs_at_cpl0, machine, legacy_vcpu):
    guest = SupervisorGuest(machine, legacy_vcpu)
    legacy_vcpu.set_xcr0(LEGACY)
    assert guest.run("vmovups ymm0, [rsi]").reason == "#UD"
    assert guest.run("addps xmm0, xmm1").reason == "done"


def test_size_in_cpuid_follows_xcr0(has_avx, restricted, machine, cpu):
    """CPUID.(0DH,0):EBX is the size of what is enabled; KVM rewrites it with XCR0. ECX stays."""
    vcpu = machine.vcpu(cpuid=restricted(WITH_AVX))
    most = leaf_of(vcpu.cpuid(), XSAVE_LEAF, 0)[2]
    for xcr0 in (1, LEGACY, WITH_AVX):
        vcpu.set_xcr0(xcr0)
        _, size, maximum, _ = leaf_of(vcpu.cpuid(), XSAVE_LEAF, 0)
        assert (size, maximum) == (Layout.standard(cpu, xcr0 | LEGACY).size, most)


def test_cpuid_inside_says_what_kvm_says(runs_at_cpl0, has_avx, restricted, machine):
    vcpu = machine.vcpu(cpuid=restricted(WITH_AVX))
    guest = SupervisorGuest(machine, vcpu)
    stores = ("mov [rdi], eax", "mov [rdi+4], edx", "mov [rdi+8], ebx", "mov [rdi+12], ecx")
    for xcr0 in (LEGACY, WITH_AVX):
        vcpu.set_xcr0(xcr0)
        assert guest.run("cpuid", *stores, rax=XSAVE_LEAF).reason == "done"
        eax, edx, ebx, ecx = (
            int.from_bytes(guest.output(16)[at : at + 4], "little") for at in range(0, 16, 4)
        )
        assert (eax, ebx, ecx, edx) == leaf_of(vcpu.cpuid(), XSAVE_LEAF, 0)


def test_a_state_with_avx_is_not_loaded_into_a_guest_without(
    legacy_vcpu, cpu, supported, machine, restricted
):
    """Foretold by the rules, and nothing is touched; without AVX in use the same vCPU takes it."""
    source = machine.vcpu(cpuid=restricted(WITH_AVX))
    source.set_xcr0(WITH_AVX)
    layout = Layout.standard(cpu, supported)
    image = Image.initial(layout)
    image.registers["xmm3"] = 0x1234
    here, there = (Destination.of(each, supported_xcr0=supported) for each in (source, legacy_vcpu))
    source.set_xsave(bytearray(image.to_bytes().ljust(source.xsave_size, b"\0")))
    source.set_xcr0(LEGACY)
    assert load(legacy_vcpu, save(source, destination=here), destination=there).exact
    before = legacy_vcpu.xsave()
    image.registers["ymm3"] = 1 << 200
    source.set_xsave(bytearray(image.to_bytes().ljust(source.xsave_size, b"\0")))
    with pytest.raises(LoadRefused, match="AVX"):
        load(legacy_vcpu, save(source, destination=here), destination=there)
    assert legacy_vcpu.xsave() == before


def test_a_guest_without_any_component_keeps_x87_and_sse(restricted, machine, avx_state):
    vcpu = machine.vcpu(cpuid=restricted(WITHOUT_XSAVE))
    vcpu.set_xsave(avx_state)
    assert xstate_bv(vcpu.xsave()) & WITH_AVX == LEGACY
    with pytest.raises(KvmError):
        vcpu.set_xcr0(LEGACY)
