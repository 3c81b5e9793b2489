"""Legality rule by rule: every finding on an image, and what each consumer will do with it.

``check`` collects findings, ``predict`` says what would happen. Both take raw bytes, so that illegal images
can be looked at; both walk the tables of ``refusal``, ``loss`` and ``lint``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

from fpstate.arch.layout import Layout
from fpstate.image.consumer import Consumer, Target
from fpstate.image.finding import Finding, Severity
from fpstate.image.lint import LINTS
from fpstate.image.loss import LOSSES
from fpstate.image.outcome import refused, taken
from fpstate.image.refusal import REFUSALS
from fpstate.image.rule import Rule
from fpstate.image.subject import Subject
from fpstate.image.verdict import Verdict

__all__ = ["RULES", "Verdict", "check", "predict"]

RULES: Final[Mapping[str, Rule]] = MappingProxyType({rule.id: rule for rule in (*REFUSALS, *LOSSES, *LINTS)})
"""Every rule by its id."""

Data = bytes | bytearray | memoryview


def check(
    data: Data,
    consumer: Consumer,
    target: Target,
    *,
    address: int = 0,
    layout: Layout | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> list[Finding]:
    """Return every finding for one consumer, in the order of the ids; empty for a clean image.

    ``address`` is where the image is to lie (alignment counts). ``layout`` is the producer's where it is known;
    without it the bytes are taken to be laid out as the target's CPUID says.
    """
    subject = Subject(data, consumer, target, address=address, layout=layout)
    return [finding for rule in _of(consumer, rules) for finding in rule.findings(subject)]


def predict(
    data: Data,
    consumer: Consumer,
    target: Target,
    *,
    address: int = 0,
    layout: Layout | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> Verdict:
    """Return what the consumer will do with these bytes; the arguments are those of ``check``."""
    subject = Subject(data, consumer, target, address=address, layout=layout)
    refusals = [finding for rule in _of(consumer, rules, refusing=True) for finding in rule.findings(subject)]
    return refused(subject, refusals) if refusals else taken(subject)


def _of(consumer: Consumer, rules: Mapping[str, Rule], *, refusing: bool = False) -> Iterable[Rule]:
    if rules is RULES:
        return _standing(consumer, refusing)
    return [rule for rule in rules.values() if _applies(rule, consumer, refusing)]


@cache
def _standing(consumer: Consumer, refusing: bool) -> tuple[Rule, ...]:
    return tuple(rule for rule in RULES.values() if _applies(rule, consumer, refusing))


def _applies(rule: Rule, consumer: Consumer, refusing: bool) -> bool:
    return consumer in rule.consumers and not (refusing and rule.severity is not Severity.ERROR)
