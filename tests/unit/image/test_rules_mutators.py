"""Each rule is broken alone, by its mutator, for each of its consumers; and a clean image has no finding."""

import pytest

from fpstate.arch import Cpu, Format
from fpstate.image.consumer import Consumer
from fpstate.image.finding import Severity
from fpstate.image.rules import RULES
from fpstate.testing.case import clean_case
from fpstate.testing.mutate import MUTATORS, broken_case

BROKEN = [(rule, consumer) for rule, mutator in MUTATORS.items() for consumer in mutator.consumers]


def test_every_rule_has_a_mutator_and_every_mutator_a_rule():
    assert set(MUTATORS) == set(RULES)


ABLE = [
    (name, consumer)
    for name in Cpu.catalog_names()
    for consumer in Consumer
    if consumer is not Consumer.XRSTORS or Cpu.catalog(name).has("XSAVES")
]


@pytest.mark.parametrize(("name", "consumer"), ABLE)
def test_a_clean_image_has_no_finding_on_any_processor(name, consumer):
    case = clean_case(consumer, name)
    assert case.findings() == []
    verdict = case.verdict()
    assert verdict.accepted
    assert str(verdict) == "loaded"


@pytest.mark.parametrize("consumer", [Consumer.XRSTOR, Consumer.SIGRETURN])
def test_a_clean_compacted_image_has_no_finding(consumer):
    """But that no kernel writes compacted frames of this size."""
    findings = clean_case(consumer, format=Format.COMPACTED).findings()
    assert [finding.id for finding in findings] == (["XS035"] if consumer is Consumer.SIGRETURN else [])


@pytest.mark.parametrize(("rule", "consumer"), BROKEN, ids=[f"{r}-{c.value}" for r, c in BROKEN])
def test_a_mutator_breaks_its_rule_and_no_other(rule, consumer):
    case = broken_case(rule, consumer)
    findings = case.findings()
    assert {finding.id for finding in findings} == {rule}
    assert consumer in RULES[rule].consumers
    for finding in findings:
        assert finding.severity is RULES[rule].severity
        assert finding.message
        assert finding.source
        assert finding.found != finding.expected or finding.found is None
    assert case.verdict().accepted is (RULES[rule].severity is not Severity.ERROR)
    assert [f.id for f in case.verdict().refusals] == [f.id for f in findings if f.severity is Severity.ERROR]


@pytest.mark.parametrize("consumer", Consumer)
def test_each_consumer_has_its_refusals_tried(consumer):
    refusing = {
        rule.id for rule in RULES.values() if rule.severity is Severity.ERROR and consumer in rule.consumers
    }
    assert refusing - {rule for rule, taker in BROKEN if taker is consumer} <= {"XS016"}
