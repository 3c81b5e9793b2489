"""What each consumer loads, initialises, keeps and loses, on processors that are not here."""

from dataclasses import replace

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict
from fpstate.testing.case import clean_case

X87, AVX, SSE, PKRU, TILES = (
    mask_of(c) for c in (Component.X87, Component.AVX, Component.SSE, Component.PKRU, Component.TILEDATA)
)
MXCSR = 0x3FA1


def case_of(consumer, cpu="zen4", format=None, *, present=None, mxcsr=MXCSR):
    case = clean_case(consumer, cpu, format)
    case.put(24, mxcsr, 4)
    if present is not None:
        case.put(512, present)
    return case


@pytest.mark.parametrize("requested", range(8))
@pytest.mark.parametrize("present", range(8))
def test_mxcsr_and_the_formats_of_xrstor(requested, present):
    """Standard: from memory if SSE or AVX is asked for. Compacted: with SSE alone, and initial without it."""
    for format in Format:
        case = case_of(Consumer.XRSTOR, format=format, present=present)
        case.target = case.target.with_(requested=requested)
        verdict = case.verdict()
        assert verdict.accepted
        assert (verdict.loaded, verdict.initialised) == (requested & present, requested & ~present)
        assert verdict.kept == case.target.xcr0 & ~requested
        if format is Format.STANDARD:
            assert verdict.mxcsr == (MXCSR if requested & 6 else None)
        else:
            assert verdict.mxcsr == ((MXCSR if present & 2 else 0x1F80) if requested & 2 else None)


@pytest.mark.parametrize("requested", range(8))
@pytest.mark.parametrize("present", range(8))
def test_reserved_bits_of_mxcsr_and_the_formats_of_xrstor(requested, present):
    for format in Format:
        case = case_of(Consumer.XRSTOR, format=format, present=present, mxcsr=0x11F80)
        case.target = case.target.with_(requested=requested)
        refused = requested & 6 if format is Format.STANDARD else requested & present & 2
        assert case.verdict().accepted is not bool(refused)


@pytest.mark.parametrize("consumer", [Consumer.PTRACE, Consumer.KVM])
def test_the_kernel_looks_at_mxcsr_where_x87_sse_or_avx_is_present(consumer):
    for present in (0, 1, 2, 4, 7, 0xE0):
        case = case_of(consumer, present=present, mxcsr=0x11F80)
        assert case.verdict().accepted is not bool(present & 7)


def test_bit_17_of_mxcsr_is_taken_on_amd_and_refused_on_intel():
    for cpu, taken in (("zen4", True), ("tiger-lake", False)):
        for consumer in (Consumer.XRSTOR, Consumer.PTRACE, Consumer.KVM, Consumer.SIGRETURN):
            assert case_of(consumer, cpu, mxcsr=0x21F80).verdict().accepted is taken


def test_an_import_without_x87_sse_and_avx_leaves_mxcsr_to_kernels_with_standard_images():
    """With XSAVEC it becomes initial; without, the old value stays in the kernel's image and is restored."""
    assert case_of(Consumer.PTRACE, "zen4", present=PKRU).verdict().mxcsr == 0x1F80
    assert case_of(Consumer.PTRACE, "haswell", present=0).verdict().mxcsr is None
    assert case_of(Consumer.PTRACE, "haswell", present=AVX).verdict().mxcsr == MXCSR
    assert str(case_of(Consumer.PTRACE, "haswell", present=AVX).verdict()) == "loaded"
    assert str(case_of(Consumer.PTRACE, "zen4", present=AVX).verdict()) == "loaded with loss of MXCSR"


@pytest.mark.parametrize("present", [0, X87, PKRU])
@pytest.mark.parametrize("consumer", [Consumer.PTRACE, Consumer.KVM])
def test_an_mxcsr_without_sse_and_avx_is_found_where_it_is_lost(consumer, present):
    case = case_of(consumer, "zen3", present=present)
    (finding,) = (each for each in case.findings() if each.id == "XS027")
    assert "neither SSE nor AVX" in finding.message
    assert (finding.offset, finding.found, finding.expected) == (24, MXCSR, 0x1F80)
    assert case.verdict().mxcsr_lost
    assert case.verdict().mxcsr == case.verdict().reported_mxcsr == 0x1F80
    for unharmed in (
        case_of(consumer, "zen3", present=present, mxcsr=0),
        case_of(consumer, "zen3", present=present, mxcsr=0x1F80),
        case_of(Consumer.XRSTOR, "zen3", present=present),
    ):
        assert "XS027" not in {each.id for each in unharmed.findings()}
        assert not unharmed.verdict().mxcsr_lost


def test_tiledata_needs_permission_everywhere():
    spr = Cpu.catalog("sapphire-rapids")
    permitted, plain = Target.from_cpu(spr, permitted=TILES), Target.from_cpu(spr)
    for consumer, answer in (
        *((Consumer.XRSTOR, "#NM"), (Consumer.PTRACE, "EINVAL"), (Consumer.KVM, "EINVAL")),
        (Consumer.XRSTORS, "#NM"),
    ):
        data = clean_case(consumer, spr).data
        assert predict(data, consumer, permitted).accepted
        assert predict(data, consumer, plain).answer == answer


def test_a_frame_of_a_task_without_tiles_does_not_load_them():
    spr = Cpu.catalog("sapphire-rapids")
    data = clean_case(Consumer.SIGRETURN, spr).data
    verdict = predict(data, Consumer.SIGRETURN, Target.from_cpu(spr))
    assert verdict.fx_only  # its size is more than that task's frames have
    assert verdict.lost & TILES


def test_kvm_drops_what_xfd_holds_back_and_keeps_pkru():
    case = clean_case(Consumer.KVM)
    verdict = replace(case, target=case.target.with_(guest_xfd=TILES)).verdict()
    assert str(verdict) == "loaded with loss of TILEDATA"
    assert verdict.initialised & TILES
    case.forget(Component.PKRU)
    assert case.verdict().kept == PKRU
    ptrace = clean_case(Consumer.PTRACE)
    ptrace.forget(Component.PKRU)
    assert ptrace.verdict().initialised == PKRU


def test_a_kernel_of_6_15_takes_a_smaller_frame_for_an_fxsave_image():
    case = clean_case(Consumer.SIGRETURN, "haswell")
    larger = Target.from_cpu(Cpu.catalog("skylake-client"))
    assert str(predict(case.data, Consumer.SIGRETURN, larger)) == "loaded"
    padded = case.data.ljust(larger.user_size + 4, b"\0")
    verdict = predict(padded, Consumer.SIGRETURN, larger.with_(magic2_at_user_size=True))
    assert str(verdict) == "loaded with loss of AVX"
    assert verdict.fx_only


def test_components_at_another_processors_offsets_are_lost():
    amd, intel = Cpu.catalog("zen4"), Target.from_cpu(Cpu.catalog("ice-lake-sp"))
    data = clean_case(Consumer.XRSTOR, amd).data.ljust(intel.standard.size, b"\0")
    verdict = predict(data, Consumer.XRSTOR, intel, layout=Layout.standard(amd))
    assert verdict.lost == sum(1 << n for n in (5, 6, 7, 9))
    assert predict(data, Consumer.XRSTOR, intel).lost == 0


def test_rejected_for_several_reasons_names_each():
    case = case_of(Consumer.PTRACE, mxcsr=1 << 20)
    case.put(520, 1)
    case.put(528, 1)
    verdict = case.verdict()
    assert str(verdict) == "rejected"
    assert [finding.id for finding in verdict.refusals] == ["XS012", "XS015", "XS017"]
    assert verdict.refusals[2].found == 1 << 20
    assert verdict.refusals[2].offset == 24


def test_findings_say_where_and_what_and_from_which_source():
    case = clean_case(Consumer.XRSTOR, "zen3")
    case.put(512, 0xE7)
    (finding,) = case.verdict().refusals
    assert (finding.id, finding.offset, finding.found, finding.expected) == ("XS007", 512, 0xE7, 0x207)
    assert "OPMASK|ZMM_HI256|HI16_ZMM" in finding.message
    assert finding.source == "SDM Vol. 1, 13.8.1"


@pytest.mark.parametrize(("vendor", "kvm_has_mpx"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_kvm_has_mpx_for_guests_on_vmx_and_not_on_svm(vendor, kvm_has_mpx):
    mpx = mask_of(Component.BNDREGS, Component.BNDCSR)
    target = Target.from_cpu(replace(Cpu.catalog("skylake-sp"), vendor=vendor))
    assert target.xcr0 & target.user_xfeatures & mpx == mpx
    assert (target.kvm_xcr0 & mpx == mpx) is kvm_has_mpx
