"""What the rules foretell of XRSTOR, and what this processor does: the same, for every image."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from types import ModuleType

import pytest
from oracle import (
    Restorer,
    Tally,
    compile_restorer,
    disagreement,
    host_target,
    mutants,
    mxcsr_of,
    share,
    without,
)

from fpstate.arch import Format, Layout
from fpstate.errors import RestoreFault
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, predict
from fpstate.testing.case import clean_case

SEEN_BY_XRSTOR = ("XS007", "XS008", "XS009", "XS012", "XS015", "XS016", "XS017")
SIGSEGV, SI_KERNEL = 11, 128


@pytest.fixture(scope="module")
def target(core: ModuleType) -> Target:
    return host_target()


def exchanged(
    core: ModuleType, target: Target, seed: int, count: int, rules: dict[str, Rule] = RULES
) -> Tally:
    """Load ``count`` mutants with every mask that this processor has for x87, SSE and AVX."""
    tally = Tally()
    managed = core.features()["managed_mask"] & ~target.xfd
    targets = [target.with_(requested=managed)] * 4 + [target.with_(requested=mask) for mask in range(8)]
    for data, source in mutants(target, seed, count):
        chosen = source.choice(targets)
        verdict = predict(data, Consumer.XRSTOR, chosen, rules=rules)
        tally.add(verdict, _judge(core, data, verdict, chosen, chosen.requested), data)
    return tally


def _judge(core, data, verdict, target, mask) -> str:
    try:
        saved = core.exchange(data, mask)
    except RestoreFault:
        return "" if not verdict.accepted else "XRSTOR refused it"
    if not verdict.accepted:
        return "XRSTOR took it"
    if mask & 6 and verdict.mxcsr is not None and mxcsr_of(saved) != verdict.mxcsr:
        return f"MXCSR is {mxcsr_of(saved):#x}, not {verdict.mxcsr:#x}"
    return disagreement(data, verdict, target, saved, visible=mask)


def test_xrstor_does_what_the_rules_foretell(core, target):
    """100,000 images in CI, 1,000,000 with FPSTATE_LONG=1."""
    count = share(100_000)
    exchanged(core, target, 1, count).assert_agreement(count)


@pytest.mark.parametrize("rule", SEEN_BY_XRSTOR)
def test_a_missing_rule_is_noticed(core, target, rule):
    """The negative control: without one of its rules, XRSTOR is foretold wrongly."""
    if rule in ("XS008", "XS009", "XS016") and not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    tally = exchanged(core, target, 2, 4000, without(rule))
    assert tally.disagreements
    assert all("refused" in problem for problem in tally.disagreements)


def test_a_wrong_mxcsr_mask_is_noticed(core, target):
    wrong = dataclasses.replace(
        target, cpu=dataclasses.replace(target.cpu, mxcsr_mask=target.mxcsr_mask ^ 1 << 15)
    )
    assert exchanged(core, wrong, 3, 2000).disagreements


@pytest.fixture(scope="module")
def restorer(gcc: str, tmp_path_factory, target: Target) -> Iterator[Restorer]:
    program = compile_restorer(gcc, tmp_path_factory.mktemp("restorer"))
    child = Restorer(program, bytes(clean_case(Consumer.XRSTOR, target.cpu, permitted=0).data))
    yield child
    child.close()


@pytest.fixture(params=[Format.STANDARD, Format.COMPACTED], ids=["standard", "compacted"])
def image(request: pytest.FixtureRequest, target: Target) -> bytearray:
    if request.param is Format.COMPACTED and not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    data = clean_case(Consumer.XRSTOR, target.cpu, request.param, permitted=0).data
    for index in range(160, 416):
        data[index] ^= 0xFF
    return data


def test_every_address_but_a_multiple_of_64_is_refused(restorer, image, target):
    for offset in range(64):
        verdict = predict(image, Consumer.XRSTOR, target, address=offset)
        signal, code, _ = restorer.ask(Restorer.XRSTOR, image, offset=offset)
        assert verdict.accepted is (signal == 0)
        assert (signal, code) in ((0, 0), (SIGSEGV, SI_KERNEL))


def test_where_memory_ends_too_early_xrstor_faults_as_foretold(restorer, image, target):
    """Standard images are read as far as the mask reaches, compacted ones as far as components are present."""
    size = max(len(image), target.standard.size)
    for length in range(64, size + 65, 64):
        for mask in (*range(8), target.user_xfeatures):
            for present in (0, 1, 3, 4, 7):
                data = bytearray(image).ljust(length, b"\0")[:length]
                if length > 512:
                    data[512:520] = present.to_bytes(8, "little")
                verdict = predict(data, Consumer.XRSTOR, target.with_(requested=mask))
                signal, _, _ = restorer.ask(Restorer.XRSTOR, data, mask=mask, at_end=True)
                assert verdict.accepted is (signal == 0), (length, mask, present, verdict.refusals)


def test_a_missing_rule_about_lengths_or_addresses_is_noticed(restorer, image, target):
    for rule, data, offset in (
        *(("XS006", image, 16), ("XS001", image[:512], 0)),
        *(("XS002", image[: (len(image) - 1) // 64 * 64], 0),),
    ):
        assert not predict(data, Consumer.XRSTOR, target, address=offset).accepted
        assert predict(data, Consumer.XRSTOR, target, address=offset, rules=without(rule)).accepted
        assert restorer.ask(Restorer.XRSTOR, data, offset=offset, at_end=not offset)[0] == SIGSEGV


def test_what_is_not_asked_for_stays_as_it_was(restorer, image, target):
    """Also after a restore that initialises: kept, initialised and loaded are three different things."""
    source = random.Random(7)
    for _ in range(share(2000)):
        data = bytearray(image)
        data[512] = source.randrange(8)
        chosen = target.with_(requested=source.randrange(8))
        verdict = predict(data, Consumer.XRSTOR, chosen)
        signal, _, saved = restorer.ask(Restorer.XRSTOR, data, mask=chosen.requested)
        assert (signal == 0) is verdict.accepted
        assert not disagreement(data, verdict, chosen, saved, pattern=restorer.pattern)
        kept = mxcsr_of(restorer.pattern)
        assert mxcsr_of(saved) == (kept if verdict.mxcsr is None else verdict.mxcsr)


def test_the_layout_is_that_of_this_processor(target):
    assert target.standard == Layout.standard(target.cpu, target.xcr0)
