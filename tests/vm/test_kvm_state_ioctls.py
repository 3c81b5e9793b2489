"""KVM's ioctls on vector state, as they are and not as one would expect: sizes, PKRU, MPX, struct kvm_fpu.

Sources: ``arch/x86/kvm/x86.c``, ``arch/x86/kernel/fpu/core.c`` (``fpu_copy_uabi_to_guest_fpstate``), KVM API 4.22,
4.42, 4.43 and 4.134.
"""

from __future__ import annotations

import errno
import struct

import pytest
from supervisor_guest import CR4, CR4_PKE, SupervisorGuest

from fpstate.arch import Component, Layout, mask_of
from fpstate.engine.kvm.abi import FPU_SIZE, XSAVE_SIZE
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.device import ioctl
from fpstate.engine.kvm.prediction import Action
from fpstate.engine.kvm.transfer import load
from fpstate.errors import KvmError
from fpstate.image import Image
from fpstate.source.guest_state import GuestState, PkruPolicy
from fpstate.testing import random_image

LEGACY = 3
X87, SSE, PKRU = 1, 2, mask_of(Component.PKRU)
MPX = mask_of(Component.BNDREGS, Component.BNDCSR)
FCW, FPU_MXCSR, FPU_XMM0 = 128, 408, 152
"""Offsets in struct kvm_fpu."""
SOFTWARE = slice(464, 472)
PATTERN = b"\xa5"


@pytest.fixture
def layout(cpu, supported):
    return Layout.standard(cpu, supported | LEGACY)


@pytest.fixture
def has_pkru(supported):
    if not supported & PKRU:
        pytest.skip("PKRU is not among the components that KVM supports here")


def payload(vcpu, image, *, xstate_bv=None):
    data = bytearray(image.to_bytes().ljust(vcpu.xsave_size, b"\0"))
    if xstate_bv is not None:
        data[512:520] = xstate_bv.to_bytes(8, "little")
    return data


def image_of(vcpu, layout):
    return Image(bytearray(vcpu.xsave()[: layout.size]), layout)


def xstate_bv(vcpu):
    return int.from_bytes(vcpu.xsave()[512:520], "little")


def test_a_new_vcpu_is_in_the_initial_state(vcpu, layout, cpu):
    image = image_of(vcpu, layout)
    assert xstate_bv(vcpu) & ~PKRU == 0
    assert (image.registers["fcw"], image.registers["mxcsr"]) == (0x37F, 0x1F80)
    assert int.from_bytes(vcpu.xsave()[28:32], "little") == cpu.mxcsr_mask


def test_each_component_is_taken_where_kvm_supports_it_and_nowhere_else(vcpu, supported, layout):
    empty = Image.initial(layout)
    for number in range(64):
        data = payload(vcpu, empty, xstate_bv=1 << number)
        if (supported | LEGACY) >> number & 1:
            vcpu.set_xsave(data)
            continue
        with pytest.raises(KvmError) as refused:
            vcpu.set_xsave(data)
        assert refused.value.errno == errno.EINVAL


def test_mpx_goes_to_guests_only_where_kvm_has_it(vcpu, supported, cpu, layout):
    """On SVM it never has (svm_hardware_setup), whatever the processor's XCR0 holds."""
    enabled = cpu.user_mask if cpu.enabled_xcr0 is None else cpu.enabled_xcr0
    if not enabled & MPX:
        pytest.skip("MPX is not enabled here")
    assert bool(supported & MPX) is (cpu.vendor == "GenuineIntel")
    if not supported & MPX:
        with pytest.raises(KvmError):
            vcpu.set_xcr0(LEGACY | MPX)
        return
    image = Image.initial(layout)
    image.registers["bndcfgu"] = 0x1000_0003
    vcpu.set_xsave(payload(vcpu, image))
    assert image_of(vcpu, layout).registers["bndcfgu"] == 0x1000_0003


def test_bytes_464_hold_what_the_host_has_and_not_the_guest(vcpu, cpu, supported):
    host = int.from_bytes(vcpu.xsave()[SOFTWARE], "little")
    assert host & supported == supported
    if cpu.enabled_xcr0 is not None:
        assert host == cpu.enabled_xcr0


def test_only_x87_and_sse_are_shown_before_cpuid_is_told(bare_vcpu, layout, cpu, supported, device):
    data = payload(bare_vcpu, random_image(layout, 21, present=supported & ~PKRU, mxcsr_mask=cpu.mxcsr_mask))
    bare_vcpu.set_xsave(data)
    assert xstate_bv(bare_vcpu) & ~PKRU == LEGACY
    bare_vcpu.set_cpuid(device.supported_cpuid())
    assert xstate_bv(bare_vcpu) & ~PKRU == supported & ~PKRU


def test_a_buffer_has_4096_bytes_or_what_the_capability_says(vcpu, device, supported, layout):
    size = device.xsave_size
    assert size == max(XSAVE_SIZE, layout.size)
    assert device.capability("KVM_CAP_XSAVE2") in (0, size)
    buffer = bytearray(PATTERN * (size + XSAVE_SIZE))
    ioctl(vcpu.file, "KVM_GET_XSAVE2" if vcpu.has_xsave2 else "KVM_GET_XSAVE", buffer)
    assert buffer[size:] == PATTERN * XSAVE_SIZE
    assert buffer[layout.size : XSAVE_SIZE] == bytes(XSAVE_SIZE - layout.size)


def test_both_ways_of_getting_a_state_give_the_same(vcpu, layout, cpu, supported):
    if not vcpu.has_xsave2 or vcpu.xsave_size > XSAVE_SIZE:
        pytest.skip("KVM_GET_XSAVE2 is missing, or KVM_GET_XSAVE too small for it")
    vcpu.set_xsave(
        payload(vcpu, random_image(layout, 22, present=supported & ~PKRU, mxcsr_mask=cpu.mxcsr_mask))
    )
    older = bytearray(XSAVE_SIZE)
    ioctl(vcpu.file, "KVM_GET_XSAVE", older)
    assert older == vcpu.xsave()


def test_components_that_are_left_out_become_initial(vcpu, layout, cpu, supported):
    mask = supported & ~PKRU
    image = random_image(layout, 23, present=mask, mxcsr_mask=cpu.mxcsr_mask)
    vcpu.set_xsave(payload(vcpu, image))
    assert xstate_bv(vcpu) & mask == mask
    vcpu.set_xsave(payload(vcpu, image, xstate_bv=SSE))
    assert xstate_bv(vcpu) & mask == SSE
    assert image_of(vcpu, layout).registers["fcw"] == 0x37F
    assert not any(vcpu.xsave()[576 : layout.size][:256])


@pytest.fixture
def pkru_guest(has_pkru, runs_at_cpl0, machine, vcpu, supported):
    """A guest that can read its PKRU."""
    guest = SupervisorGuest(machine, vcpu)
    vcpu.set_xcr0(supported)
    guest.set_controls(cr4=CR4 | CR4_PKE)
    return guest


def test_pkru_alone_is_kept_when_it_is_left_out(pkru_guest, vcpu, layout):
    image = Image.initial(layout)
    image.registers["pkru"] = 0x5554
    vcpu.set_xsave(payload(vcpu, image))
    assert image_of(vcpu, layout).registers["pkru"] == 0x5554
    vcpu.set_xsave(payload(vcpu, image, xstate_bv=LEGACY))
    assert pkru_guest.run("rdpkru").eax == 0x5554
    image.registers["pkru"] = 0
    vcpu.set_xsave(payload(vcpu, image, xstate_bv=LEGACY | PKRU))
    assert pkru_guest.run("rdpkru").eax == 0


def test_a_pkru_that_was_kept_is_not_given_back_before_the_guest_has_run(pkru_guest, vcpu, layout):
    """Who saves in between loses it: bit 9 of XSTATE_BV is the image's, the value is the vCPU's."""
    image = Image.initial(layout)
    image.registers["pkru"] = 0x5554
    vcpu.set_xsave(payload(vcpu, image))
    vcpu.set_xsave(payload(vcpu, image, xstate_bv=LEGACY))
    assert not xstate_bv(vcpu) & PKRU
    assert pkru_guest.run("xgetbv").reason == "done"
    assert xstate_bv(vcpu) & PKRU
    assert image_of(vcpu, layout).registers["pkru"] == 0x5554


@pytest.mark.parametrize("has_run", [True, False], ids=["after a run", "before any"])
def test_a_load_that_keeps_pkru_is_exact(pkru_guest, vcpu, layout, cpu, supported, has_run):
    image = Image.initial(layout)
    image.registers["pkru"] = 0x5554
    vcpu.set_xsave(payload(vcpu, image))
    if has_run:
        assert pkru_guest.run("xgetbv").reason == "done"
    there = Destination.of(vcpu, supported_xcr0=supported)
    state = GuestState(Image.initial(layout), supported, cpu, pkru=PkruPolicy.KEEP)
    report = load(vcpu, state, destination=there)
    assert dict(report.prediction.actions)[Component.PKRU] is Action.KEPT
    assert pkru_guest.run("rdpkru").eax == 0x5554


def test_a_pkru_of_0_is_shown_as_in_use_once_the_guest_has_run(pkru_guest, vcpu, layout):
    """Of the registers that are saved then PKRU is the host's, whose program has one that is not 0."""
    assert not xstate_bv(vcpu) & PKRU
    assert pkru_guest.run("rdpkru").eax == 0
    assert xstate_bv(vcpu) & PKRU
    assert image_of(vcpu, layout).registers["pkru"] == 0


def test_set_fpu_takes_no_mxcsr_and_get_fpu_gives_none(vcpu, layout):
    image = Image.initial(layout)
    image.registers["mxcsr"] = 0x1FA0
    image.registers["xmm0"] = 7
    vcpu.set_xsave(payload(vcpu, image))
    data = vcpu.fpu()
    assert struct.unpack_from("<I", data, FPU_MXCSR) == (0,)
    struct.pack_into("<I", data, FPU_MXCSR, 0x3F80)
    vcpu.set_fpu(data)
    assert image_of(vcpu, layout).registers["mxcsr"] == 0x1FA0


def test_set_fpu_does_not_reach_a_component_that_is_initial(vcpu, layout):
    data = bytearray(FPU_SIZE)
    struct.pack_into("<H", data, FCW, 0x27F)
    data[FPU_XMM0 : FPU_XMM0 + 16] = PATTERN * 16
    vcpu.set_fpu(data)
    assert xstate_bv(vcpu) & LEGACY == 0
    image = image_of(vcpu, layout)
    assert (image.registers["fcw"], image.registers["xmm0"]) == (0x37F, 0)


def test_set_fpu_reaches_a_component_that_is_in_use(vcpu, layout):
    """The control, and the use that is left for it: the bits come by KVM_SET_XSAVE."""
    vcpu.set_xsave(payload(vcpu, Image.initial(layout), xstate_bv=LEGACY))
    data = vcpu.fpu()
    struct.pack_into("<H", data, FCW, 0x27F)
    data[FPU_XMM0 : FPU_XMM0 + 16] = PATTERN * 16
    vcpu.set_fpu(data)
    image = image_of(vcpu, layout)
    assert image.registers["fcw"] == 0x27F
    assert image.registers["xmm0"] == int.from_bytes(PATTERN * 16, "little")


def test_set_fpu_of_an_initial_component_is_not_seen_by_the_guest_either(
    runs_at_cpl0, machine, vcpu, supported
):
    guest = SupervisorGuest(machine, vcpu)
    vcpu.set_xcr0(supported)
    data = bytearray(FPU_SIZE)
    struct.pack_into("<H", data, FCW, 0x37F)
    data[FPU_XMM0 : FPU_XMM0 + 16] = PATTERN * 16
    vcpu.set_fpu(data)
    assert guest.run("xsave64 [rdi]", rax=LEGACY).reason == "done"
    assert guest.output()[160:176] == bytes(16)
