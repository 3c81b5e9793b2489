"""KVM's buffers: read with the host's layout, and what KVM does not transfer is said."""

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.image import differences
from fpstate.source.raw import open_raw
from fpstate.testing import build_image, random_image
from fpstate.testing.container import kvm_fpu, kvm_xsave

ZEN4 = Cpu.catalog("zen4")


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_every_register_comes_back_from_kvm_xsave(name):
    cpu = Cpu.catalog(name)
    image = random_image(Layout.standard(cpu, cpu.xcr0), 5)
    data = kvm_xsave(image, size=max(4096, image.layout.size))
    (state,) = open_raw(data, cpu=cpu, format="kvm-xsave")
    assert (state.image.layout, state.image.layout_source, state.xcr0) == (image.layout, "given", None)
    assert [(each.id, each.found) for each in state.findings] == [("SRC010", cpu.xcr0)]
    assert differences(state.image, image, exact=True) == []


@pytest.mark.parametrize(("name", "one"), [("zen4", False), ("ice-lake-sp", False), ("haswell", True)])
def test_the_length_of_a_buffer_says_nothing_about_the_processor(name, one):
    image = random_image(Layout.standard(Cpu.catalog(name)), 5)
    if one:
        (state,) = open_raw(kvm_xsave(image))
        assert (state.image, state.image.layout_source) == (image, "inferred")
    else:
        with pytest.raises(AmbiguousLayout) as caught:
            open_raw(kvm_xsave(image))
        assert {"zen4", "ice-lake-sp"} <= set(caught.value.candidates)


def test_only_a_mask_that_one_layout_has_is_inferred():
    cpu = Cpu.catalog("sapphire-rapids")
    image = random_image(Layout.standard(cpu), 5)
    (state,) = open_raw(kvm_xsave(image, size=12288), format="kvm-xsave")
    assert state.image == image


def test_a_buffer_without_the_hosts_mask_needs_a_processor():
    image = random_image(Layout.standard(ZEN4), 5)
    with pytest.raises(AmbiguousLayout):
        open_raw(kvm_xsave(image, host=0), format="kvm-xsave")
    (state,) = open_raw(kvm_xsave(image, host=0), format="kvm-xsave", cpu=ZEN4)
    assert state.image == image


@pytest.mark.parametrize(
    ("data", "cpu", "message"),
    [
        (bytes(4095), None, "KVM_GET_XSAVE gives 4096"),
        (bytes(464) + b"\2" + bytes(3631), None, "which no processor can have"),
        (kvm_xsave(random_image(Layout.standard(ZEN4), 5)), "haswell", "another processor made it"),
        (bytes(4096), "sapphire-rapids", "KVM_CAP_XSAVE2|needs 11008"),
    ],
)
def test_what_cannot_be_such_a_buffer_is_refused(data, cpu, message):
    with pytest.raises(SourceError, match=message) as caught:
        open_raw(data, format="kvm-xsave", cpu=None if cpu is None else Cpu.catalog(cpu))
    assert caught.value.offset is not None


def test_kvm_fpu_has_x87_and_xmm_and_no_mxcsr():
    image = random_image(Layout.standard(ZEN4), 5, present=0x2E7)
    (state,) = open_raw(kvm_fpu(image))
    held = state.image.registers
    names = [name for name in held if not name.startswith("mxcsr")]
    assert len(names) > 40
    assert {name: held[name] for name in names} == {name: image.registers[name] for name in names}
    finding, bitmap = state.findings
    assert bitmap.id == "SRC016"
    assert (finding.id, finding.register, finding.found, held["mxcsr"]) == ("SRC011", "mxcsr", 0, 0x1F80)
    (state,) = open_raw(kvm_fpu(image, mxcsr=0x9FC0))
    assert (state.image.registers["mxcsr"], state.findings[0].found) == (0x9FC0, 0x9FC0)


def test_kvm_fpu_of_another_length_is_refused():
    with pytest.raises(SourceError, match="struct kvm_fpu has 416"):
        open_raw(bytes(415), format="kvm-fpu")


def test_an_initial_vcpu_is_initial():
    (state,) = open_raw(kvm_fpu(build_image(Layout.standard(ZEN4))))
    assert state.image.in_use == 0
