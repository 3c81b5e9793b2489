"""What the rules foretell of XRSTOR, and what this processor does: the same, for every image."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping

import pytest
from oracle import Tally, count_for, disagreement, mutants, share, without, wrong_words
from recording.images import Attempt
from restorer import Answer, Restorer, attempt

from fpstate.arch import Component, Format, Layout
from fpstate.image.consumer import ALL, Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import clean_case

COUNT = 100_000
CUT = 0.1
SEEN_BY_XRSTOR = ("XS007", "XS008", "XS009", "XS012", "XS015", "XS016", "XS017")
Told = tuple[bytearray, Verdict, Target]


def restored(
    restorer: Restorer, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES
) -> Tally:
    """Restore ``count`` mutants, with every mask for x87, SSE and AVX, and with others; some end with memory."""
    tally = Tally()
    for told, answer in restorer.ask_all(_attempts(target, seed, count, rules)):
        data, verdict, chosen = told
        problem = _judge(data, verdict, chosen, answer, restorer.pattern)
        tally.add(verdict, problem, data.ljust(576, b"\0"))
    return tally


def _attempts(
    target: Target, seed: int, count: int, rules: Mapping[str, Rule]
) -> Iterator[tuple[Attempt, Told]]:
    masks = [*[target.xcr0] * 4, *range(8), ALL, target.user_xfeatures, target.xcr0 & ~7]
    targets = [target.with_(requested=mask) for mask in masks]
    for data, source in mutants(target, seed, count, without=0):
        chosen = source.choice(targets)
        cut = source.random() < CUT
        if cut:
            data = data[: 64 * source.randrange(len(data) // 64 + 1)]
        verdict = predict(data, Consumer.XRSTOR, chosen, rules=rules)
        yield attempt(data, mask=chosen.requested, at_end=cut), (data, verdict, chosen)


def _judge(data: bytearray, verdict: Verdict, target: Target, answer: Answer, pattern: bytes) -> str:
    if answer.fault != verdict.answer:
        return f"XRSTOR answers {answer.fault or 'nothing'}, not {verdict.answer or 'nothing'}"
    return wrong_words(verdict, target, answer.registers, pattern) or disagreement(
        data, verdict, target, answer.registers, pattern=pattern
    )


def test_xrstor_does_what_the_rules_foretell(restorer, target, permission):
    """100,000 images in CI, 1,000,000 with FPSTATE_LONG=1."""
    count = count_for(COUNT, permission)
    restored(restorer, target, 1, count).assert_agreement(count)


@pytest.mark.parametrize("rule", SEEN_BY_XRSTOR)
def test_a_missing_rule_is_noticed(restorer, target, rule):
    """The negative control: without one of its rules, XRSTOR is foretold wrongly."""
    if rule in ("XS008", "XS009", "XS016") and not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    tally = restored(restorer, target, 2, 4000, without(rule))
    assert any("answers #GP, not nothing" in problem for problem in tally.disagreements)


def test_a_wrong_mxcsr_mask_is_noticed(restorer, target):
    wrong = dataclasses.replace(
        target, cpu=dataclasses.replace(target.cpu, mxcsr_mask=target.mxcsr_mask ^ 1 << 15)
    )
    assert restored(restorer, wrong, 3, 2000).disagreements


@pytest.mark.parametrize("choice", ["header_first", "reads_absent", "partial_restore"])
def test_the_other_vendor_is_noticed(restorer, target, choice):
    """The negative control for what vendors do differently: order of faults, bytes read, what a refusal changed."""
    if not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    other = target.with_(**{choice: not getattr(target, choice)})
    assert restored(restorer, other, 4, 20_000).disagreements


def test_a_wrong_exception_is_noticed(restorer, target):
    """The negative control for which exception it is: #GP foretold as #PF."""
    data = clean_case(Consumer.XRSTOR, target.cpu, permitted=0).data
    data[528] = 1
    verdict = predict(data, Consumer.XRSTOR, target)
    answer = restorer.ask(attempt(data))
    assert not _judge(data, verdict, target, answer, restorer.pattern)
    wrong = dataclasses.replace(verdict, answer="#PF")
    assert "answers #GP, not #PF" in _judge(data, wrong, target, answer, restorer.pattern)


def test_a_broken_tilecfg_that_is_taken_for_loaded_is_noticed(restorer, target):
    """The negative control for TILECFG: an illegal configuration never faults, and is not loaded either."""
    if Component.TILECFG not in target.standard:
        pytest.skip("AMX: TILECFG (XCR0[17])")
    data = clean_case(Consumer.XRSTOR, target.cpu, permitted=0).data
    data[target.standard.offset(Component.TILECFG) + 48] = 17
    verdict = predict(data, Consumer.XRSTOR, target)
    answer = restorer.ask(attempt(data))
    assert not _judge(data, verdict, target, answer, restorer.pattern)
    bit = 1 << Component.TILECFG
    wrong = dataclasses.replace(verdict, loaded=verdict.loaded | bit, initialised=verdict.initialised & ~bit)
    assert _judge(data, wrong, target, answer, restorer.pattern) == "component 17 is not loaded"


@pytest.fixture(params=[Format.STANDARD, Format.COMPACTED], ids=["standard", "compacted"])
def image(request: pytest.FixtureRequest, target: Target) -> bytearray:
    if request.param is Format.COMPACTED and not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    return clean_case(Consumer.XRSTOR, target.cpu, request.param, permitted=0).data


def test_every_address_but_a_multiple_of_64_is_refused(restorer, image, target):
    for offset in range(64):
        verdict = predict(image, Consumer.XRSTOR, target, address=offset)
        answer = restorer.ask(attempt(image, offset=offset))
        assert answer.fault == verdict.answer == ("#GP" if offset else "")


def test_where_memory_ends_too_early_xrstor_faults_as_foretold(restorer, image, target):
    """Standard images are read as far as the mask reaches; how far compacted ones are, each vendor chose."""
    for length in range(64, _whole(image, target) + 65, 64):
        for mask in (*range(8), target.user_xfeatures):
            for present in (0, 1, 3, 4, 7):
                data = bytearray(image).ljust(length, b"\0")[:length]
                if length > 512:
                    data[512:520] = present.to_bytes(8, "little")
                verdict = predict(data, Consumer.XRSTOR, target.with_(requested=mask))
                answer = restorer.ask(attempt(data, mask=mask, at_end=True))
                assert answer.fault == verdict.answer, (length, mask, present, verdict.refusals)


def _whole(image: bytes | bytearray, target: Target) -> int:
    """Bytes up to where a restore of anything ends, in steps of 64."""
    return -(-max(len(image), target.standard.size) // 64) * 64


def test_a_missing_rule_about_lengths_or_addresses_is_noticed(restorer, image, target):
    for rule, data, offset in (
        ("XS006", image, 16),
        ("XS001", image[:512], 0),
        ("XS002", image[: (len(image) - 1) // 64 * 64], 0),
    ):
        assert not predict(data, Consumer.XRSTOR, target, address=offset).accepted
        assert predict(data, Consumer.XRSTOR, target, address=offset, rules=without(rule)).accepted
        assert restorer.ask(attempt(data, offset=offset, at_end=not offset)).fault


def test_what_is_not_asked_for_stays_as_it_was(restorer, image, target):
    """Also after a restore that initialises: kept, initialised and loaded are three different things."""
    source = random.Random(7)
    for _ in range(share(2000)):
        data = bytearray(image)
        data[512] = source.randrange(8)
        chosen = target.with_(requested=source.randrange(8))
        verdict = predict(data, Consumer.XRSTOR, chosen)
        answer = restorer.ask(attempt(data, mask=chosen.requested))
        assert not _judge(data, verdict, chosen, answer, restorer.pattern)


def test_the_layout_is_that_of_this_processor(target):
    assert target.standard == Layout.standard(target.cpu, target.xcr0)
