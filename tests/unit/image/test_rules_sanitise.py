"""Sanitised images are taken, keep what they can, and say what they lost; refusing is another function."""

import random

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.errors import FpStateError, ImageError
from fpstate.image import Image
from fpstate.image.consumer import WHOLE_IMAGE, Consumer, Target
from fpstate.image.finding import Severity
from fpstate.image.rules import RULES, check, predict
from fpstate.image.sanitise import refuse, sanitise
from fpstate.image.subject import MAGIC2
from fpstate.testing import build_image, random_image
from fpstate.testing.case import clean_case
from fpstate.testing.chance import mangle
from fpstate.testing.mutate import MUTATORS, broken_case

BROKEN = [(rule, consumer) for rule, mutator in MUTATORS.items() for consumer in mutator.consumers]
ADDRESS = "XS006"  # nothing that an image could be cured of
ERRORS = [
    (r, c) for r, c in BROKEN if RULES[r].severity is Severity.ERROR and r != ADDRESS and c in WHOLE_IMAGE
]


@pytest.mark.parametrize("consumer", WHOLE_IMAGE)
def test_a_clean_image_stays_as_it_is(consumer):
    case = clean_case(consumer)
    done = sanitise(case.data, consumer, case.target)
    assert (done.data, done.repairs, done.findings) == (bytes(case.data), (), ())


@pytest.mark.parametrize(("rule", "consumer"), ERRORS, ids=[f"{r}-{c.value}" for r, c in ERRORS])
def test_every_refused_image_is_taken_after_sanitising_and_raises_on_refusing(rule, consumer):
    case = broken_case(rule, consumer)
    with pytest.raises(ImageError, match=rule):
        refuse(case.data, consumer, case.target, layout=case.layout)
    if rule == "XS009":
        with pytest.raises(ImageError, match="XCOMP_BV"):
            sanitise(case.data, consumer, case.target)
        return
    done = sanitise(case.data, consumer, case.target, layout=case.layout)
    assert done.repairs
    assert predict(done.data, consumer, case.target).accepted
    refuse(done.data, consumer, case.target)
    assert sanitise(done.data, consumer, case.target, leftovers="keep").repairs == ()


@pytest.mark.parametrize("name", ["zen3", "sapphire-rapids", "haswell"])
def test_images_mutated_at_random_are_cured_or_refused_with_a_reason(name):
    source = random.Random(name)
    target = Target.from_cpu(Cpu.catalog(name))
    refused = 0
    for number in range(60):
        data = bytearray(random_image(target.standard, number).to_bytes())
        mangle(data, source)
        for consumer in WHOLE_IMAGE:
            if consumer is Consumer.XRSTORS and not target.cpu.has("XSAVES"):
                continue
            try:
                done = sanitise(data, consumer, target)
            except FpStateError:
                refused += 1
                continue
            verdict = predict(done.data, consumer, target)
            assert verdict.accepted
            assert not verdict.lost
            assert not verdict.mxcsr_lost
    assert refused < 60


def test_forgotten_bits_are_set_in_built_images_and_stale_bytes_cleared_in_frames():
    raw = broken_case("XS101", Consumer.XRSTOR)
    done = sanitise(raw.data, Consumer.XRSTOR, raw.target)
    assert [repair.rule for repair in done.repairs] == ["XS101"]
    assert done.data == bytes(clean_case(Consumer.XRSTOR).data)
    frame = broken_case("XS102", Consumer.SIGRETURN)
    done = sanitise(frame.data, Consumer.SIGRETURN, frame.target)
    assert [repair.rule for repair in done.repairs] == ["XS102"]
    place = frame.target.standard.place(Component.OPMASK)
    assert not any(done.data[place.offset : place.end])
    kept = sanitise(frame.data, Consumer.SIGRETURN, frame.target, leftovers="keep")
    assert kept.data == bytes(frame.data)
    cleared = sanitise(raw.data, Consumer.XRSTOR, raw.target, leftovers="clear")
    assert not any(cleared.data[place.offset : place.end])


def test_a_zeroed_header_gives_back_every_component():
    """A header of zeros: KVM would make everything initial, and say nothing."""
    target = Target.from_cpu(Cpu.catalog("zen4"))
    image = random_image(target.standard, 5, present=target.xcr0)
    data = bytearray(image.to_bytes())
    data[512:520] = bytes(8)
    done = sanitise(data, Consumer.KVM, target)
    cured = Image(done.data[: target.standard.size], target.standard)
    assert cured.in_use | mask_of(Component.SSE) == image.in_use | mask_of(Component.SSE)
    assert {repair.rule for repair in done.repairs} == {"XS101", "XS113"}


@pytest.mark.parametrize("consumer", WHOLE_IMAGE)
@pytest.mark.parametrize("bare", [False, True], ids=["as it is", "of no frame"])
def test_an_illegal_tilecfg_is_left_out_for_every_consumer(consumer, bare):
    """Of bytes that are no frame too, of which one is made: until then nothing but the FXSAVE part counts."""
    case = broken_case("XS034", consumer)
    if bare:
        case.data[464:512] = bytes(48)
    done = sanitise(case.data, consumer, case.target)
    assert "XS034" in {repair.rule for repair in done.repairs}
    assert "XS034" not in {finding.id for finding in done.findings}
    verdict = predict(done.data, consumer, case.target)
    assert not verdict.lost
    assert verdict.initialised & mask_of(Component.TILECFG)
    assert verdict.loaded & mask_of(Component.TILEDATA)


def test_a_frame_that_is_made_anew_has_no_illegal_tilecfg_either():
    """It did not ask for the component; laid out anew, it asks for everything that the task may have."""
    case = clean_case(Consumer.SIGRETURN, format=Format.COMPACTED)
    case.data[case.place(Component.TILECFG).start] = 2
    case.forget(Component.TILEDATA)
    for offset, value, size in ((468, 2820, 4), (472, 0x2E7, 8), (480, 2816, 4), (2816, MAGIC2, 4)):
        case.put(offset, value, size)
    target = Target.from_cpu(case.target.cpu)
    assert "XS034" not in {finding.id for finding in check(case.data, Consumer.SIGRETURN, target)}
    done = sanitise(case.data, Consumer.SIGRETURN, target)
    assert "XS034" not in {finding.id for finding in done.findings}
    assert not predict(done.data, Consumer.SIGRETURN, target).lost


def test_a_tilecfg_that_is_not_asked_for_is_left_alone():
    case = broken_case("XS034", Consumer.XRSTOR)
    case.target = case.target.with_(requested=0xE7)
    assert sanitise(case.data, Consumer.XRSTOR, case.target).repairs == ()


def test_mxcsr_is_given_an_sse_bit_and_no_stale_xmm():
    case = broken_case("XS027", Consumer.PTRACE)
    case.data[160:416] = b"\xaa" * 256
    done = sanitise(case.data, Consumer.PTRACE, case.target, leftovers="keep")
    assert "XS027" in {repair.rule for repair in done.repairs}
    cured = Image(done.data, case.target.standard)
    assert cured.registers["xmm0"] == 0
    assert cured.registers["mxcsr"] == int.from_bytes(case.data[24:28], "little")


def without_vectors(made_by: str, mxcsr: int) -> tuple[bytes, Layout]:
    """What XSAVE writes where x87 alone is in use: MXCSR is there, though no component carries it."""
    layout = Layout.standard(Cpu.catalog(made_by))
    data = bytearray(build_image(layout, {"st0": 0x3FFF << 64 | 1 << 63}).to_bytes())
    data[24:28] = mxcsr.to_bytes(4, "little")
    return bytes(data), layout


@pytest.mark.parametrize("made_by", ["zen3", "zen4"])
@pytest.mark.parametrize("consumer", WHOLE_IMAGE)
def test_an_mxcsr_that_no_component_carries_is_kept(consumer, made_by):
    data, layout = without_vectors(made_by, 0x3FA0)
    target = Target.from_cpu(Cpu.catalog("zen3"))
    done = sanitise(data, consumer, target, layout=layout)
    verdict = predict(done.data, consumer, target)
    assert (verdict.mxcsr, verdict.mxcsr_lost) == (0x3FA0, False)
    changed = any(data[at] != done.data[at] for at in range(512, 520))
    assert changed is ("XS027" in {repair.rule for repair in done.repairs})


@pytest.mark.parametrize("consumer", [Consumer.PTRACE, Consumer.KVM])
def test_left_over_xmm_bytes_are_cleared_and_listed_where_mxcsr_needs_sse(consumer):
    data, layout = without_vectors("zen3", 0x3FA0)
    stale = bytearray(data)
    stale[160:416] = b"\xaa" * 256
    target = Target.from_cpu(Cpu.catalog("zen3"))
    done = sanitise(stale, consumer, target, leftovers="keep")
    assert [repair.rule for repair in done.repairs][:2] == ["XS102", "XS027"]
    cured = Image(done.data[: layout.size], layout)
    assert (cured.registers["xmm3"], cured.registers["mxcsr"]) == (0, 0x3FA0)


@pytest.mark.parametrize("mxcsr", [0, 0x1F80])
def test_an_mxcsr_that_nobody_wrote_needs_no_sse(mxcsr):
    data, _ = without_vectors("zen3", mxcsr)
    target = Target.from_cpu(Cpu.catalog("zen3"))
    assert "XS027" not in {repair.rule for repair in sanitise(data, Consumer.PTRACE, target).repairs}


def test_components_that_the_target_lacks_are_left_out_by_name():
    spr, zen3 = Cpu.catalog("sapphire-rapids"), Target.from_cpu(Cpu.catalog("zen3"))
    image = build_image(Layout.standard(spr), {"zmm0": 1 << 500, "ymm1": 1 << 200, "k1": 7, "pkru": 4})
    done = sanitise(image.to_bytes(), Consumer.PTRACE, zen3, layout=image.layout)
    assert {r.component for r in done.repairs if r.rule == "XS010"} == {Component.OPMASK, Component.ZMM_HI256}
    moved = Image(done.data, zen3.standard)
    assert (moved.registers["ymm1"], moved.registers["pkru"]) == (1 << 200, 4)


def test_formats_are_changed_where_the_consumer_takes_one_alone():
    target = Target.from_cpu(Cpu.catalog("tiger-lake"))
    standard = random_image(target.standard, 3, present=7)
    compacted = sanitise(standard.to_bytes(), Consumer.XRSTORS, target)
    layout = target.compacted(int.from_bytes(compacted.data[520:528], "little"))
    assert layout.format is Format.COMPACTED
    assert Image(compacted.data, layout) == standard
    back = sanitise(compacted.data, Consumer.PTRACE, target)
    assert Image(back.data, target.standard) == standard
    assert "XS014" in {repair.rule for repair in compacted.repairs}
    assert "XS013" in {repair.rule for repair in back.repairs}
