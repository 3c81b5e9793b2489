"""What processors of two vendors do differently, and what frames do to PKRU."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.image.consumer import INIT_PKRU, Consumer, Target
from fpstate.image.finding import Severity
from fpstate.image.outcome import cleared
from fpstate.image.rules import check, predict
from fpstate.testing.case import clean_case
from recorded import OWN

X87, SSE, AVX, PKRU, TILES = (
    mask_of(each)
    for each in (Component.X87, Component.SSE, Component.AVX, Component.PKRU, Component.TILEDATA)
)
INTEL, AMD = "ice-lake-sp", "zen4"
FRAMES = (Consumer.SIGRETURN, Consumer.SIGRETURN32)


def broken(cpu: str, format: Format, *, address: int = 0, length: int | None = None, **words: int):
    """An XRSTOR of an image that breaks several rules: words by name, then cut."""
    case = clean_case(Consumer.XRSTOR, cpu, format)
    case.address = address
    for offset, value, size in (
        (512, words.get("xstate_bv"), 8),
        (520, words.get("xcomp_bv"), 8),
        (528, words.get("reserved"), 8),
        (24, words.get("mxcsr"), 4),
    ):
        if value is not None:
            case.put(offset, value, size)
    if length is not None:
        del case.data[length:]
    return case.verdict()


ORDERS = {
    "misaligned, and the header missing": ({"address": 8, "length": 520}, "#GP", "#GP"),
    "the header missing": ({"length": 520}, "#PF", "#PF"),
    "a component missing": ({"length": 640}, "#PF", "#PF"),
    "a component missing, reserved bytes": ({"length": 640, "reserved": 1}, "#PF", "#GP"),
    "a component missing, MXCSR": ({"length": 640, "mxcsr": 1 << 30}, "#PF", "#PF"),
    "reserved bytes, MXCSR": ({"reserved": 1, "mxcsr": 1 << 30}, "#GP", "#GP"),
}


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("words", "intel", "amd"), ORDERS.values(), ids=ORDERS)
def test_the_first_of_several_faults_is_the_vendors(words, intel, amd, format):
    assert broken(INTEL, format, **words).answer == intel
    assert broken(AMD, format, **words).answer == amd


@pytest.mark.parametrize("cpu", [INTEL, AMD])
def test_what_xcomp_bv_may_not_name_comes_before_missing_memory(cpu):
    verdict = broken(cpu, Format.COMPACTED, length=640, xcomp_bv=1 << 63 | 7 | 1 << 40)
    assert verdict.answer == "#GP"
    assert "XS009" in {each.id for each in verdict.refusals}


@pytest.mark.parametrize("cpu", [INTEL, AMD])
def test_a_compacted_image_without_its_absent_components_is_short_on_intel(cpu):
    case = clean_case(Consumer.XRSTOR, cpu, Format.COMPACTED)
    case.put(512, X87 | SSE)
    del case.data[576:]
    assert case.target.reads_absent is (cpu == INTEL)
    assert case.verdict().accepted is (cpu == AMD)
    case.target = case.target.with_(requested=X87 | SSE)
    assert case.verdict().accepted
    ends = Layout.compacted(case.target.cpu, case.word(520) & ~(1 << 63)).place(Component.AVX).end
    case.target = case.target.with_(requested=X87 | AVX)
    case.data += bytes(ends - 1 - len(case.data))
    assert case.verdict().accepted is (cpu == AMD)
    case.data += bytes(1)
    assert case.verdict().accepted


@pytest.mark.parametrize("cpu", [INTEL, AMD])
def test_a_restore_that_is_refused_for_mxcsr_has_done_part_of_its_work_on_intel(cpu):
    case = clean_case(Consumer.XRSTOR, cpu, Format.COMPACTED)
    case.put(512, SSE | mask_of(Component.OPMASK))
    case.put(24, 1 << 30, 4)
    verdict = case.verdict()
    managed = case.target.xcr0
    assert (verdict.answer, verdict.mxcsr, verdict.pkru) == ("#GP", None, None)
    if cpu == AMD:
        assert (verdict.loaded, verdict.initialised, verdict.kept) == (0, 0, managed)
        return
    assert verdict.loaded == SSE
    assert verdict.initialised == managed & ~(SSE | PKRU | mask_of(Component.OPMASK))
    assert verdict.kept == PKRU | mask_of(Component.OPMASK)


@pytest.mark.parametrize("cpu", [INTEL, AMD])
def test_any_other_refusal_of_a_restore_changes_nothing(cpu):
    for words in ({"reserved": 1, "mxcsr": 1 << 30}, {"xcomp_bv": 1}, {"length": 640, "mxcsr": 1 << 30}):
        verdict = broken(cpu, Format.COMPACTED, **words)
        assert verdict.refusals
        assert (verdict.loaded, verdict.initialised, verdict.mxcsr) == (0, 0, None)
        assert verdict.kept == Target.from_cpu(Cpu.catalog(cpu)).xcr0
    standard = broken(cpu, Format.STANDARD, mxcsr=1 << 30)
    assert (standard.answer, standard.loaded, standard.initialised) == ("#GP", 0, 0)


def test_a_refused_regset_or_buffer_changes_nothing():
    for consumer in (Consumer.PTRACE, Consumer.KVM, Consumer.FPREGS):
        case = clean_case(consumer, INTEL)
        managed = case.verdict().loaded | case.verdict().kept
        if consumer is Consumer.KVM:
            case.put(528, 1)
        else:
            case.put(24, 1 << 30, 4)
        verdict = case.verdict()
        assert (verdict.answer, verdict.kept, verdict.loaded) == ("EINVAL", managed, 0)


@pytest.mark.parametrize("consumer", FRAMES, ids=lambda each: each.value)
def test_a_refused_frame_leaves_everything_initial_and_the_default_pkru(consumer):
    case = clean_case(consumer, INTEL)
    case.put(528, 1)
    verdict = case.verdict()
    assert verdict.answer == "SIGSEGV"
    assert verdict.initialised == case.target.user_xfeatures & ~PKRU
    assert (verdict.mxcsr, verdict.pkru) == (0x1F80, INIT_PKRU)
    none = cleared(case.target)
    assert (none.accepted, none.initialised, none.pkru) == (True, verdict.initialised, INIT_PKRU)
    assert cleared(Target.from_cpu(Cpu.catalog("zen2"))).pkru is None


@pytest.mark.parametrize("consumer", FRAMES, ids=lambda each: each.value)
def test_a_frame_opens_every_key_unless_it_brings_pkru(consumer):
    def opened(*words: tuple[int, int, int]) -> tuple[int | None, list[int | None]]:
        case = clean_case(consumer, INTEL)
        for offset, value, size in words:
            case.put(offset, value, size)
        at = [each.offset for each in case.findings() if each.id == "XS028"]
        return case.verdict().pkru, [offset - case.origin for offset in at if offset is not None]

    assert opened() == (0x55555554, [])
    assert opened((512, 0xE7, 8)) == (0, [512])
    assert opened((472, 0xE7, 8)) == (0, [472])
    assert opened((464, 0, 4)) == (0, [464])
    assert opened((468, 0, 4)) == (0, [468])


def test_pkru_is_told_by_all_who_load_it():
    for consumer in (Consumer.XRSTOR, Consumer.PTRACE, Consumer.KVM):
        case = clean_case(consumer, INTEL)
        assert case.verdict().pkru == 0x55555554
        case.forget(Component.PKRU)
        assert case.verdict().pkru == (None if consumer is Consumer.KVM else 0)
    kept = clean_case(Consumer.XRSTOR, INTEL)
    kept.target = kept.target.with_(requested=7)
    assert kept.verdict().pkru is None
    assert clean_case(Consumer.FPREGS, INTEL).verdict().pkru is None


def test_four_bytes_of_pkru_are_no_register_and_no_data():
    for consumer in (Consumer.XRSTOR, Consumer.SIGRETURN, Consumer.PTRACE):
        case = clean_case(consumer, INTEL)
        at = case.place(Component.PKRU).start
        case.data[at + 4 : at + 8] = b"\xcc" * 4
        assert case.findings() == []
        assert case.verdict().pkru == 0x55555554
        case.data[at : at + 4] = bytes(4)
        case.put(512, case.word(512) & ~PKRU)
        assert {each.id for each in case.findings()} <= {"XS028"}


def test_a_compacted_header_over_a_standard_frame_is_warned_of_where_it_moves_anything():
    for cpu, moved in ((INTEL, True), (AMD, False)):
        case = clean_case(Consumer.SIGRETURN, cpu)
        case.put(520, 1 << 63 | case.target.user_xfeatures)
        verdict = case.verdict()
        assert verdict.accepted
        assert ("XS035" in {each.id for each in case.findings()}) is moved
    compacted = clean_case(Consumer.SIGRETURN, INTEL, Format.COMPACTED)
    assert "XS035" in {each.id for each in compacted.findings()}
    layout = compacted.target.compacted(compacted.word(520))
    assert layout is not None
    compacted.put(480, layout.size, 4)
    compacted.put(layout.size, 0x46505845, 4)
    assert "XS035" not in {each.id for each in compacted.findings()}


RECORDED = sorted((OWN / "generated_intel" / "sigframe").glob("*.fpstate.bin"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.removesuffix(".fpstate.bin"))
def test_a_frame_that_linux_wrote_is_loaded_and_what_the_stack_had_is_a_note(path):
    """Bytes that nobody wrote are there in most of these; none of them is data that would be lost."""
    used = mask_of(Component.TILEDATA) if len(path.read_bytes()) > 4096 else 0
    target = Target.from_cpu(Cpu.catalog("emerald-rapids"), permitted=used)
    consumer = Consumer.SIGRETURN32 if path.name.startswith("i386") else Consumer.SIGRETURN
    data = path.read_bytes()
    verdict = predict(data, consumer, target)
    assert str(verdict) == "loaded"
    assert verdict.pkru
    assert all(each.severity is Severity.NOTE for each in check(data, consumer, target))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.removesuffix(".fpstate.bin"))
def test_what_the_stack_had_where_nobody_wrote_is_a_note(path):
    """The places that Linux leaves alone: software bytes, gaps, half of PKRU, tiles that are not in use."""
    data = bytearray(path.read_bytes())
    is_32 = path.name.startswith("i386")
    consumer, origin = (Consumer.SIGRETURN32, 112) if is_32 else (Consumer.SIGRETURN, 0)
    target = Target.from_cpu(Cpu.catalog("emerald-rapids"), permitted=TILES if len(data) > 4096 else 0)
    stated = int.from_bytes(data[origin + 512 : origin + 520], "little")
    spans = [(416, 464), (832, 1088), (2692, 2752)]
    spans += [place for bit, place in ((17, (2752, 2816)), (18, (2816, 11008))) if not stated >> bit & 1]
    for start, end in spans:
        size = min(origin + end, len(data) - 4) - (origin + start)
        data[origin + start : origin + start + max(size, 0)] = b"\xcc" * max(size, 0)
    findings = check(data, consumer, target)
    assert str(predict(data, consumer, target)) == "loaded"
    assert all(each.severity is Severity.NOTE for each in findings)
    assert {416, 832, 2696} <= {each.offset - origin for each in findings if each.id == "XS110"}
    left_over = {each.component for each in findings if each.id == "XS102"}
    assert Component.PKRU not in left_over
    assert left_over == {
        bit for bit in (17, 18) if not stated >> bit & 1 and target.user_xfeatures >> bit & 1
    }


def test_the_older_requests_bring_what_they_hold_and_keep_the_rest():
    for consumer, size, loaded, mxcsr in (
        (Consumer.FPREGS, 512, X87 | SSE, 0x3FA1),
        (Consumer.PRXFPREG, 512, X87 | SSE, 0x3FA1),
        (Consumer.FSAVE, 108, X87, None),
        (Consumer.KVM_FPU, 416, X87 | SSE, None),
    ):
        case = clean_case(consumer, INTEL)
        assert len(case.data) == size
        verdict = case.verdict()
        assert (verdict.loaded, verdict.mxcsr, verdict.initialised) == (loaded, mxcsr, 0)
        assert verdict.kept == 0x2E7 & ~loaded
        longer = predict(bytes(case.data) + bytes(8), consumer, case.target)
        assert longer.accepted
        if consumer is not Consumer.KVM_FPU:
            shorter = predict(bytes(case.data[:-8]), consumer, case.target)
            assert (shorter.answer, [each.id for each in shorter.refusals]) == ("EINVAL", ["XS005"])


def test_a_32_bit_frame_is_judged_as_ptrace_judges():
    case = clean_case(Consumer.SIGRETURN32, INTEL)
    assert predict(case.data, case.consumer, case.target, address=4).accepted
    case.put(512, X87 | AVX)
    short = bytes(case.data)
    verdict = predict(short, case.consumer, case.target)
    assert (verdict.loaded, verdict.mxcsr) == (X87 | AVX, 0x1F80)
    for offset, value, rule in ((512, 1 << 19 | 3, "XS010"), (520, 1 << 63 | 7, "XS013"), (536, 1, "XS016")):
        other = clean_case(Consumer.SIGRETURN32, INTEL)
        other.put(offset, value)
        assert [each.id for each in other.verdict().refusals] == [rule]
