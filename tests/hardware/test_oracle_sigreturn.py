"""What the rules foretell of sigreturn, and what this kernel does with the frame of a real signal."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
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

from fpstate.arch import Format
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import as_frame, clean_case

COUNT = 10_000
SIGSEGV = 11
XFEATURES_AT, XSTATE_SIZE_AT = 472, 480
CUTS = (64, 448, 512, 576, 640, 768)


@pytest.fixture(scope="module")
def target(core: ModuleType) -> Target:
    return host_target()


@pytest.fixture(scope="module")
def restorer(gcc: str, tmp_path_factory, target: Target) -> Iterator[Restorer]:
    program = compile_restorer(gcc, tmp_path_factory.mktemp("restorer"))
    pattern = clean_case(Consumer.XRSTOR, target.cpu, permitted=0).data
    for index in range(160, 416):
        pattern[index] ^= 0xFF
    child = Restorer(program, bytes(pattern))
    yield child
    child.close()


def returned(
    restorer: Restorer, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES
) -> Tally:
    """Return from ``count`` signals with a mutated frame: some misplaced, some cut off where memory ends."""
    tally = Tally()
    for data, source in mutants(target, seed, count, lambda image: as_frame(image, target)):
        offset = source.choice((0, 0, 0, 0, 0, 0, 0, 8, 16, 32))
        cut = source.choice(CUTS) if source.random() < 0.05 else 0
        if cut:
            data, offset = data[:cut], 0
        verdict = predict(data, Consumer.SIGRETURN, target, address=offset, rules=rules)
        answer = restorer.ask(Restorer.SIGRETURN, data, offset=offset, at_end=bool(cut))
        tally.add(verdict, _judge(data, verdict, target, answer), data.ljust(576, b"\0"))
    return tally


def _judge(data: bytearray, verdict: Verdict, target: Target, answer: tuple[int, int, bytes]) -> str:
    signal, _, saved = answer
    if signal:
        return "" if not verdict.accepted and signal == SIGSEGV else f"signal {signal}"
    if not verdict.accepted:
        return "sigreturn took it"
    if mxcsr_of(saved) != verdict.mxcsr:
        return f"MXCSR is {mxcsr_of(saved):#x}, not {verdict.mxcsr}"
    return disagreement(data.ljust(1024, b"\0"), verdict, target, saved)


def test_sigreturn_does_what_the_rules_foretell(restorer, target):
    """10,000 frames in CI, 100,000 with FPSTATE_LONG=1; registers are read back after each."""
    count = share(COUNT)
    tally = returned(restorer, target, 11, count)
    tally.assert_agreement(count)
    assert any("with loss of" in verdict for verdict in tally.counts)


@pytest.mark.parametrize(
    "rule",
    *(["XS001", "XS003", "XS006", "XS007", "XS008", "XS009", "XS012", "XS015", "XS016", "XS017"],),
)
def test_a_missing_rule_is_noticed(restorer, target, rule):
    if rule in ("XS008", "XS009", "XS016") and not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    chosen = target
    tally = returned(restorer, chosen, 12, 4000, without(rule))
    if rule == "XS001":  # a frame that ends in its first 512 bytes breaks nothing else
        assert any("signal 11" in problem for problem in tally.disagreements)
    assert tally.disagreements


@pytest.mark.parametrize("change", [{"magic2_at_user_size": True}, {"compacted_restore": False}], ids=str)
def test_another_kernel_is_noticed(restorer, target, change):
    """The negative control for what is lost: kernels that differ from this one foretell other registers."""
    assert returned(restorer, target.with_(**change), 13, 4000).disagreements


def test_a_compacted_frame_is_taken_by_processors_that_know_the_format(restorer, target):
    if not target.compaction:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    data = as_frame(clean_case(Consumer.XRSTOR, target.cpu, Format.COMPACTED, permitted=0).data, target)
    verdict = predict(data, Consumer.SIGRETURN, target)
    signal, _, saved = restorer.ask(Restorer.SIGRETURN, data)
    assert str(verdict) == "loaded"
    assert signal == 0
    assert not disagreement(data, verdict, target, saved)
    assert mxcsr_of(saved) == mxcsr_of(data) == verdict.mxcsr


def test_a_smaller_consistent_frame_keeps_its_components(restorer, target):
    """Frames made for fewer components: magic2 lies where the frame says, or where the kernel's own would."""
    data = bytearray(as_frame(clean_case(Consumer.XRSTOR, target.cpu, permitted=0).data, target))
    data[512:520] = struct.pack("<Q", 3)
    data[XFEATURES_AT:484] = struct.pack("<QI", 3, 576)
    data[576:580] = data[-4:]
    verdict = predict(data, Consumer.SIGRETURN, target)
    signal, _, saved = restorer.ask(Restorer.SIGRETURN, data)
    assert signal == 0
    if disagreement(data, verdict, target, saved):
        later = target.with_(magic2_at_user_size=True)
        assert not disagreement(data, predict(data, Consumer.SIGRETURN, later), later, saved)


def test_without_a_frame_all_user_state_becomes_initial(restorer, target):
    signal, _, saved = restorer.ask(Restorer.NO_FRAME, bytes(576))
    assert signal == 0
    initialised = Verdict(Consumer.SIGRETURN, (), initialised=target.standard.mask)
    assert not disagreement(bytes(576), initialised, target, saved)
    assert mxcsr_of(saved) == 0x1F80
