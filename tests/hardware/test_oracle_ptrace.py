"""What the rules foretell of PTRACE_SETREGSET, what it answers, and what the task then runs with."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping

import pytest
from oracle import Tally, as_reported, count_for, disagreement, mutants, mxcsr_of, without
from recording.host import Host
from recording.traced import Traced, TraceError, compile_traced
from restorer import with_pkru

from fpstate.arch import Cpu
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import clean_case

COUNT = 10_000
SEEN_BY_PTRACE = ("XS004", "XS005", "XS010", "XS012", "XS013", "XS015", "XS016", "XS017")


@pytest.fixture(scope="module")
def traced(gcc: str, tmp_path_factory, permission: int) -> Iterator[Traced]:
    program = compile_traced(gcc, tmp_path_factory.mktemp("traced"))
    try:
        child = Traced(program, Cpu.host(), permission=permission)
    except TraceError as error:
        pytest.skip(f"tracing a child: {error}")
    with child:
        yield child


def written(
    traced: Traced, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES
) -> Tally:
    """Write ``count`` mutated regsets, some of another length; read each back, and let the task run on it."""
    tally = Tally()
    before = traced.get()
    for data, source in mutants(target, seed, count, without=0):
        if source.random() < 0.2:
            length = source.choice(
                (0, 8, 511, 576, len(data) - 8, len(data) - 1, len(data) + 1, len(data) + 64)
            )
            data = data.ljust(length, b"\xee")[:length]
        verdict = predict(data, Consumer.PTRACE, target, rules=rules)
        padded = data.ljust(target.standard.size, b"\0")
        tally.add(verdict, _judge(traced, data, padded, verdict, target, before), padded)
        before = traced.get()
    return tally


def _judge(traced: Traced, data, padded, verdict: Verdict, target: Target, before: bytes) -> str:
    error = traced.set(data)
    if error or not verdict.accepted:
        if not error or errno.errorcode[error] != verdict.answer:
            return f"ptrace answers {error}, not {verdict.answer}"
        return "" if traced.get() == before else "a refused image changed the task"
    answer = traced.get()
    if mxcsr_of(answer) != verdict.reported_mxcsr:
        return f"MXCSR reads back {mxcsr_of(answer):#x}, not {verdict.reported_mxcsr:#x}"
    if int.from_bytes(answer[512:520], "little") != verdict.reported:
        return "XSTATE_BV reads back changed"
    seen = traced.run()
    live = with_pkru(Host.here(), seen.registers, seen.pkru)
    if verdict.mxcsr is not None and mxcsr_of(live) != verdict.mxcsr:
        return f"MXCSR is {mxcsr_of(live):#x} where the task runs, not {verdict.mxcsr:#x}"
    return disagreement(padded, as_reported(verdict), target, answer) or disagreement(
        padded, verdict, target, live
    )


def test_setregset_does_what_the_rules_foretell(traced, target, permission):
    """10,000 regsets in CI, 100,000 with FPSTATE_LONG=1; each is read back, and looked at in the running task."""
    count = count_for(COUNT, permission)
    tally = written(traced, target, 21, count)
    tally.assert_agreement(count)
    assert any("with loss of MXCSR" in verdict for verdict in tally.counts)


@pytest.mark.parametrize("rule", SEEN_BY_PTRACE)
def test_a_missing_rule_is_noticed(traced, target, rule):
    assert written(traced, target, 22, 3000, without(rule)).disagreements


def test_another_kernel_is_noticed(traced, target):
    """The negative control for MXCSR: a kernel that restores the other format gives the task another one."""
    other = target.with_(compacted_restore=not target.compacted_restore)
    assert written(traced, other, 23, 2000).disagreements


def test_mxcsr_without_sse_reads_back_and_is_lost(traced, target):
    if not target.user_xfeatures & 4 or not target.compacted_restore:
        pytest.skip("AVX, and a kernel that restores compacted images (XSAVEC)")
    data = clean_case(Consumer.PTRACE, target.cpu, permitted=0).data
    data[512] = 4
    data[24:28] = (0x1F81).to_bytes(4, "little")
    verdict = predict(data, Consumer.PTRACE, target)
    assert str(verdict) == "loaded with loss of MXCSR"
    assert traced.set(data) == 0
    assert mxcsr_of(traced.get()) == verdict.reported_mxcsr == 0x1F81
    assert mxcsr_of(traced.run().registers) == verdict.mxcsr == 0x1F80
