"""Guests at CPL 0: their registers reach KVM's images and come from them, and XCR0 is enforced.

Sources: SDM Vol. 1, 13.3 to 13.8; KVM ``arch/x86/kvm/x86.c`` (``kvm_load_guest_xsave_state``).
"""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
from supervisor_guest import (
    CR0,
    CR0_TS,
    CR4,
    CR4_OSXSAVE,
    CR4_PKE,
    INSTRUCTIONS,
    SupervisorGuest,
    emulated_by_tcg,
)

from fpstate.arch import Component, Layout, mask_of
from fpstate.arch.component import components_in
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.reset import reset
from fpstate.engine.kvm.transfer import load
from fpstate.engine.kvm.vcpu import Machine
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.image.difference import differences
from fpstate.image.rules import predict
from fpstate.source.guest_state import GuestState
from fpstate.testing import random_image

ALL = 0xFFFF_FFFF
SSE = mask_of(Component.SSE)
AVX = mask_of(Component.AVX)
ZMM = mask_of(Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM)
X87, LEGACY, WITH_AVX = 1, 3, 7
STATES = 40
POINTERS = ("fop", "fip", "fdp")
PKRU = mask_of(Component.PKRU)
"""Not changed at random: a guest with protection keys on could lock itself out."""


@pytest.fixture
def avx(has_avx, guest):
    guest.vcpu.set_xcr0(WITH_AVX)
    return guest


@pytest.fixture
def layout(cpu, supported):
    """Where KVM's images have each component."""
    return Layout.standard(cpu, supported | LEGACY)


@pytest.fixture
def whole(guest, supported):
    """The guest with every component that KVM supports, but PKRU."""
    guest.vcpu.set_xcr0(supported & ~PKRU)
    return guest


def states(cpu, layout, seed):
    """Yield random images. All have SSE, which alone carries MXCSR always."""
    source = random.Random(seed)
    for number in range(STATES):
        yield state(cpu, layout, seed + number, present=source.getrandbits(20) & layout.mask & ~PKRU | SSE)


def state(cpu, layout, seed, present):
    return random_image(layout, seed, present=present, mxcsr_mask=cpu.mxcsr_mask)


def image_of(data, layout):
    return Image(bytearray(data[: layout.size]), layout)


def put(guest, image):
    guest.vcpu.set_xsave(bytearray(image.to_bytes().ljust(guest.vcpu.xsave_size, b"\0")))


def different(wanted, data):
    """Return what is not as wanted. Pointers of x87 are not compared: some processors keep none, nor does QEMU."""
    found = image_of(data, wanted.layout)
    registers = (each for each in differences(wanted, found) if each.register not in POINTERS)
    return [each for each in registers if each.register != "pkru"]


def test_what_a_guest_restores_is_what_kvm_then_saves(whole, cpu, layout):
    for wanted in states(cpu, layout, 1):
        left = whole.run("xrstor64 [rsi]", rax=ALL, rdx=ALL, data=wanted.to_bytes())
        assert left.reason == "done"
        assert different(wanted, whole.vcpu.xsave()) == []


def test_what_kvm_is_told_to_load_is_what_a_guest_then_saves(whole, cpu, layout):
    for wanted in states(cpu, layout, 2):
        put(whole, wanted)
        assert whole.run("xsave64 [rdi]", rax=ALL, rdx=ALL).reason == "done"
        assert different(wanted, whole.output()) == []


def test_a_state_goes_on_in_another_guest(whole, device, cpu, layout):
    with Machine(device) as machine:
        other = SupervisorGuest(machine, machine.vcpu())
        other.vcpu.set_xcr0(whole.vcpu.xcr0())
        for wanted in states(cpu, layout, 3):
            whole.run("xrstor64 [rsi]", rax=ALL, rdx=ALL, data=wanted.to_bytes())
            other.vcpu.set_xsave(whole.vcpu.xsave())
            assert other.run("xsave64 [rdi]", rax=ALL, rdx=ALL).reason == "done"
            assert different(wanted, other.output()) == []


def test_a_component_that_is_not_carried_over_would_be_noticed(whole, cpu, layout):
    """The control: a save without each component in turn is told from the state that the guest has."""
    mask = whole.vcpu.xcr0()
    wanted = state(cpu, layout, 4, present=mask)
    put(whole, wanted)
    for component in components_in(mask):
        assert whole.run("xsave64 [rdi]", rax=mask & ~(1 << component)).reason == "done"
        names = {name for each in different(wanted, whole.output()) for name in each.components}
        assert Component(component).name in names


def mxcsr_inside(guest):
    """MXCSR as XSAVE in the guest writes it, whatever is in use."""
    assert guest.run("xsave64 [rdi]", rax=ALL, rdx=ALL).reason == "done"
    return int.from_bytes(guest.output(28)[24:28], "little")


@pytest.mark.parametrize("present", [0, X87, SSE, AVX, X87 | AVX, LEGACY | AVX])
def test_the_mxcsr_that_a_guest_gets_is_the_one_foretold(whole, cpu, layout, present):
    """Where the kernel restores in the standard format, a state without x87, SSE and AVX leaves the old MXCSR.

    KVM_GET_XSAVE says 1F80H all the same: xfeatures_mxcsr_quirk, and SDM Vol. 1, 13.8.
    """
    if present & ~layout.mask:
        pytest.skip("AVX is not among the components that KVM supports here")
    old, new = 0x1FA0, 0x3F80
    before = Image.initial(layout)
    before.registers["mxcsr"] = old
    data = bytearray(state(cpu, layout, 7, present=present).to_bytes().ljust(whole.vcpu.xsave_size, b"\0"))
    data[24:28] = new.to_bytes(4, "little")
    put(whole, before)
    assert mxcsr_inside(whole) == old
    whole.vcpu.set_xsave(data)
    target = Target.from_cpu(cpu).with_(kvm_xcr0=layout.mask, guest_xcr0=layout.mask)
    verdict = predict(bytes(data), Consumer.KVM, target)
    assert int.from_bytes(whole.vcpu.xsave()[24:28], "little") == verdict.reported_mxcsr
    assert mxcsr_inside(whole) == (old if verdict.mxcsr is None else verdict.mxcsr)
    if present == 0:
        assert (verdict.mxcsr is None) is not target.compacted_restore


@pytest.mark.parametrize("present", [0, X87, AVX], ids=["nothing", "x87", "AVX"])
def test_a_guest_into_which_a_state_is_loaded_has_its_mxcsr(whole, cpu, layout, supported, present):
    """However little the state uses, and whatever the guest before it had."""
    if present & ~layout.mask:
        pytest.skip("AVX is not among the components that KVM supports here")
    there = Destination.of(whole.vcpu, supported_xcr0=supported)
    before, image = Image.initial(layout), state(cpu, layout, 8, present=present)
    before.registers["mxcsr"] = 0x1FA0
    put(whole, before)
    assert mxcsr_inside(whole) == 0x1FA0
    load(whole.vcpu, GuestState(image, supported & ~PKRU, cpu), destination=there)
    assert mxcsr_inside(whole) == image.registers["mxcsr"]


@pytest.mark.parametrize("kept", ["mxcsr", "xmm3"])
def test_a_guest_on_a_vcpu_that_was_reset_has_initial_registers(whole, layout, supported, kept):
    before = Image.initial(layout)
    before.registers[kept] = 0x1FA0
    put(whole, before)
    assert mxcsr_inside(whole) == before.registers["mxcsr"]
    reset(
        whole.vcpu, xcr0=supported & ~PKRU, destination=Destination.of(whole.vcpu, supported_xcr0=supported)
    )
    assert mxcsr_inside(whole) == 0x1F80
    assert different(Image.initial(layout), whole.output()) == []


def lanes(*values):
    """A ymm register of doublewords."""
    return int.from_bytes(b"".join(value.to_bytes(4, "little") for value in values), "little")


def test_a_guest_computes_with_ymm_registers_at_cpl_0(avx, layout):
    image = Image.initial(layout)
    image.registers["ymm0"] = lanes(*range(8))
    image.registers["ymm1"] = lanes(*range(256, 264))
    put(avx, image)
    assert avx.run("vpaddd ymm2, ymm0, ymm1").reason == "done"
    assert image_of(avx.vcpu.xsave(), layout).registers["ymm2"] == lanes(*range(256, 272, 2))


@pytest.mark.parametrize(
    ("xcr0", "reason"), [(X87, "#UD"), (LEGACY, "#UD"), (WITH_AVX, "done")], ids=["x87", "sse", "avx"]
)
@pytest.mark.parametrize("instruction", ["vmovups ymm0, [rsi]", "vpaddd ymm2, ymm0, ymm1"])
def test_avx_is_undefined_where_xcr0_lacks_it(has_avx, guest, xcr0, reason, instruction):
    guest.vcpu.set_xcr0(xcr0)
    assert guest.run(instruction).reason == reason


def test_avx512_is_undefined_where_xcr0_lacks_it(guest, supported):
    if supported & ZMM != ZMM:
        pytest.skip("AVX-512 is not among the components that KVM supports here")
    for xcr0, reason in ((WITH_AVX, "#UD"), (WITH_AVX | ZMM, "done")):
        guest.vcpu.set_xcr0(xcr0)
        assert guest.run("vaddps zmm0, zmm0, zmm1").reason == reason


def test_a_guest_reads_the_xcr0_that_kvm_was_told(guest, supported):
    for value in (X87, LEGACY, supported):
        guest.vcpu.set_xcr0(value)
        left = guest.run("xgetbv", rcx=0)
        assert (left.reason, left.pair) == ("done", value)


def test_xgetbv_of_a_register_that_is_not_there_is_a_general_protection_fault(guest):
    assert guest.run("xgetbv", rcx=2).reason == "#GP"


def test_xsave_writes_what_xcr0_has_and_nothing_else(avx):
    """Of AVX that is in use: XSAVE with XCR0 = 3 leaves its place alone, and XSTATE_BV without it."""
    avx.run("vmovups ymm0, [rsi]", data=b"\xa5" * 32)
    for xcr0, there in ((LEGACY, 0), (WITH_AVX, AVX)):
        avx.vcpu.set_xcr0(xcr0)
        assert avx.run("xsave64 [rdi]", rax=ALL, rdx=ALL).reason == "done"
        assert int.from_bytes(avx.output()[512:520], "little") & ~LEGACY == there
        assert any(avx.output()[576:592]) is bool(there)


def test_a_component_that_xcr0_hides_is_not_lost(avx, layout):
    """SDM Vol. 1, 13.3: state of a component whose XCR0 bit is cleared stays, out of reach."""
    avx.run("vmovups ymm0, [rsi]", data=bytes(range(1, 33)))
    avx.vcpu.set_xcr0(X87)
    assert avx.run("xgetbv").reason == "done"
    avx.vcpu.set_xcr0(WITH_AVX)
    assert avx.run("xsave64 [rdi]", rax=WITH_AVX).reason == "done"
    ymm0 = image_of(avx.output(), layout).registers["ymm0"]
    assert ymm0 == int.from_bytes(bytes(range(1, 33)), "little")


@pytest.mark.parametrize(
    ("rule", "at", "value"),
    [("MXCSR", 24, 1 << 31), ("XSTATE_BV", 512, 1 << 62 | 3), ("XCOMP_BV", 520, 1), ("reserved", 528, 1)],
)
def test_images_that_xrstor_refuses_raise_a_general_protection_fault(whole, cpu, layout, rule, at, value):
    """SDM Vol. 1, 13.8.1; the untouched image is taken."""
    if rule == "MXCSR" and emulated_by_tcg():
        pytest.skip("QEMU's TCG does not check MXCSR in XRSTOR")
    data = bytearray(state(cpu, layout, 5, present=LEGACY).to_bytes())
    assert whole.run("xrstor64 [rsi]", rax=ALL, rdx=ALL, data=bytes(data)).reason == "done"
    data[at : at + 8] = value.to_bytes(8, "little")
    assert whole.run("xrstor64 [rsi]", rax=ALL, rdx=ALL, data=bytes(data)).reason == "#GP"


def test_an_image_with_avx_is_refused_where_xcr0_lacks_it(avx, cpu, layout):
    data = state(cpu, layout, 6, present=AVX).to_bytes()
    assert avx.run("xrstor64 [rsi]", rax=ALL, rdx=ALL, data=data).reason == "done"
    avx.vcpu.set_xcr0(LEGACY)
    assert avx.run("xrstor64 [rsi]", rax=ALL, rdx=ALL, data=data).reason == "#GP"


def test_without_osxsave_there_is_no_xgetbv_and_no_avx(avx):
    avx.set_controls(cr4=CR4 & ~CR4_OSXSAVE)
    for instruction in ("xgetbv", "xsave64 [rdi]", "vmovups ymm0, [rsi]"):
        assert avx.run(instruction, rax=ALL).reason == "#UD"
    assert avx.run("addps xmm0, xmm1").reason == "done"


@pytest.mark.parametrize("instruction", ["fld1", "addps xmm0, xmm1", "vmovups ymm0, [rsi]", "xsave64 [rdi]"])
def test_with_cr0_ts_the_fpu_is_not_available(avx, instruction):
    avx.set_controls(cr0=CR0 | CR0_TS)
    if instruction.startswith("xsave") and emulated_by_tcg():
        pytest.skip("QEMU's TCG does not look at CR0.TS in XSAVE")
    assert avx.run(instruction, rax=ALL).reason == "#NM"
    avx.set_controls()
    assert avx.run(instruction, rax=ALL).reason == "done"


@pytest.fixture
def xsetbv(guest):
    """A guest whose XSETBV reaches KVM."""
    guest.vcpu.set_xcr0(X87)
    if guest.run("xsetbv", rax=LEGACY).reason == "done" and guest.vcpu.xcr0() != LEGACY:
        pytest.skip("the XSETBV of a nested guest is lost here, as in QEMU 7.2's TCG")
    return guest


def test_a_guest_sets_its_xcr0_by_the_same_rules(xsetbv, supported):
    for value, reason in (
        *((0, "#GP"), (2, "#GP"), (5, "#GP"), (1 << 62 | 1, "#GP"), (WITH_AVX | 1 << 5, "#GP")),
        *((X87, "done"), (LEGACY, "done"), (supported, "done")),
    ):
        before = xsetbv.vcpu.xcr0()
        assert xsetbv.run("xsetbv", rax=value & ALL, rdx=value >> 32).reason == reason
        assert xsetbv.vcpu.xcr0() == (value if reason == "done" else before)
    assert xsetbv.run("xsetbv", rax=LEGACY, rcx=1).reason == "#GP"


def test_protection_keys_of_a_guest_reach_kvm(guest, supported, layout):
    if not supported & PKRU:
        pytest.skip("PKRU is not among the components that KVM supports here")
    guest.vcpu.set_xcr0(supported)
    guest.set_controls(cr4=CR4 | CR4_PKE)
    assert guest.run("wrpkru", rax=0x5554_5550).reason == "done"
    image = image_of(guest.vcpu.xsave(), layout)
    assert image.registers["pkru"] == 0x5554_5550
    image.registers["pkru"] = 0x0000_0AA0
    put(guest, image)
    left = guest.run("rdpkru")
    assert (left.reason, left.eax) == ("done", 0x0000_0AA0)


def test_the_instructions_are_what_the_assembler_makes_of_them(tmp_path):
    if not (shutil.which("as") and shutil.which("objcopy")):
        pytest.skip("as and objcopy are not installed")
    source, code, flat = (tmp_path / name for name in ("code.s", "code.o", "code"))
    source.write_text("\n".join([".intel_syntax noprefix", *INSTRUCTIONS, ""]))
    subprocess.run(["as", "-o", code, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", code, flat], check=True)
    assert flat.read_bytes().hex() == "".join(INSTRUCTIONS.values())
