"""What the rules foretell of sigreturn, and what this kernel does with a frame that has such an image."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from oracle import Tally, count_for, disagreement, mutants, mxcsr_of, without, wrong_words
from recording.images import Attempt
from restorer import SIGRETURN, Answer, Restorer, attempt, without_frame

from fpstate.arch import Component, Format
from fpstate.image.consumer import INIT_PKRU, Consumer, Target
from fpstate.image.control import MXCSR_INIT
from fpstate.image.outcome import cleared
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import as_frame, clean_case

COUNT = 10_000
XFEATURES_AT, XSTATE_SIZE_AT = 472, 480
CUTS = (64, 448, 512, 576, 640, 768)
Told = tuple[bytearray, Verdict]


def returned(
    restorer: Restorer, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES
) -> Tally:
    """Return from ``count`` signals with a mutated frame: some misplaced, some cut off where memory ends."""
    tally = Tally()
    for (data, verdict), answer in restorer.ask_all(_attempts(target, seed, count, rules)):
        tally.add(verdict, _judge(data, verdict, target, answer, restorer.pattern), data.ljust(576, b"\0"))
    return tally


def _attempts(
    target: Target, seed: int, count: int, rules: Mapping[str, Rule]
) -> Iterator[tuple[Attempt, Told]]:
    for data, source in mutants(target, seed, count, lambda image: as_frame(image, target), without=0):
        offset = source.choice((0, 0, 0, 0, 0, 0, 0, 8, 16, 32))
        cut = source.choice(CUTS) if source.random() < 0.05 else 0
        if cut:
            data, offset = data[:cut], 0
        verdict = predict(data, Consumer.SIGRETURN, target, address=offset, rules=rules)
        yield attempt(data, SIGRETURN, offset=offset, at_end=bool(cut)), (data, verdict)


def _judge(data: bytearray, verdict: Verdict, target: Target, answer: Answer, pattern: bytes) -> str:
    if answer.fault != verdict.answer:
        return f"sigreturn answers {answer.fault or 'nothing'}, not {verdict.answer or 'nothing'}"
    return wrong_words(verdict, target, answer.registers, pattern) or disagreement(
        data.ljust(1024, b"\0"), verdict, target, answer.registers
    )


def test_sigreturn_does_what_the_rules_foretell(restorer, target, permission):
    """10,000 frames in CI, 100,000 with FPSTATE_LONG=1; registers are read back after each."""
    count = count_for(COUNT, permission)
    tally = returned(restorer, target, 11, count)
    tally.assert_agreement(count)
    assert any("with loss of" in verdict for verdict in tally.counts)


@pytest.mark.parametrize(
    "rule",
    ["XS001", "XS003", "XS006", "XS007", "XS008", "XS009", "XS012", "XS015", "XS016", "XS017"],
)
def test_a_missing_rule_is_noticed(restorer, target, rule):
    if rule in ("XS008", "XS009", "XS016") and not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    tally = returned(restorer, target, 12, 4000, without(rule))
    assert any("answers SIGSEGV, not nothing" in problem for problem in tally.disagreements)


@pytest.mark.parametrize("change", [{"magic2_at_user_size": True}, {"compacted_restore": False}], ids=str)
def test_another_kernel_is_noticed(restorer, target, change):
    """The negative control for what is lost: kernels that differ from this one foretell other registers."""
    assert returned(restorer, target.with_(**change), 13, 4000).disagreements


def test_a_compacted_frame_is_taken_by_processors_that_know_the_format(restorer, target):
    if not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    data = as_frame(clean_case(Consumer.XRSTOR, target.cpu, Format.COMPACTED, permitted=0).data, target)
    verdict = predict(data, Consumer.SIGRETURN, target)
    answer = restorer.ask(attempt(data, SIGRETURN))
    assert str(verdict) == "loaded"
    assert not _judge(data, verdict, target, answer, restorer.pattern)
    assert mxcsr_of(answer.registers) == mxcsr_of(data)


def test_a_smaller_consistent_frame_keeps_its_components(restorer, target):
    """Frames made for fewer components: magic2 lies where the frame says, or where the kernel's own would."""
    data = bytearray(as_frame(clean_case(Consumer.XRSTOR, target.cpu, permitted=0).data, target))
    data[512:520] = struct.pack("<Q", 3)
    data[XFEATURES_AT:484] = struct.pack("<QI", 3, 576)
    data[576:580] = data[-4:]
    verdict = predict(data, Consumer.SIGRETURN, target)
    answer = restorer.ask(attempt(data, SIGRETURN))
    assert not answer.fault
    if disagreement(data, verdict, target, answer.registers):
        later = target.with_(magic2_at_user_size=True)
        assert not disagreement(data, predict(data, Consumer.SIGRETURN, later), later, answer.registers)


def test_without_a_frame_all_user_state_becomes_initial_but_pkru(restorer, target):
    """PKRU becomes what new programs start with, not the zero of the initial configuration."""
    answer = restorer.ask(without_frame())
    verdict = cleared(target)
    assert not _judge(bytearray(576), verdict, target, answer, restorer.pattern)
    assert mxcsr_of(answer.registers) == MXCSR_INIT
    if Component.PKRU in target.standard:
        assert verdict.pkru == INIT_PKRU
        wrong = replace(verdict, pkru=0)
        assert "PKRU" in _judge(bytearray(576), wrong, target, answer, restorer.pattern)
