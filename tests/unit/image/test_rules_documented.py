"""docs/rules.md and the rules say the same: ids, titles, severities, consumers."""

import re
from pathlib import Path

import pytest

from fpstate.image.consumer import Consumer
from fpstate.image.rules import RULES

PAGE = Path(__file__).parents[3] / "docs" / "rules.md"
SECTION = re.compile(r"^### (XS\d{3}) (.+)\n\n(error|warning|note): ([a-z0-9, -]+)\.", re.MULTILINE)


def sections() -> dict[str, tuple[str, str, set[str]]]:
    found = SECTION.findall(PAGE.read_text())
    assert len({id for id, *_ in found}) == len(found)
    return {id: (title, severity, set(names.split(", "))) for id, title, severity, names in found}


def test_every_rule_has_a_section_and_every_section_a_rule():
    assert set(sections()) == set(RULES)
    assert PAGE.read_text().count("\n### XS") == len(RULES)


@pytest.mark.parametrize("id", RULES)
def test_a_section_has_the_title_the_severity_and_the_consumers_of_its_rule(id):
    rule = RULES[id]
    assert rule.id == id
    assert sections()[id] == (rule.title, rule.severity.value, {each.value for each in rule.consumers})


def test_ids_are_in_order_and_each_consumer_is_introduced():
    assert list(RULES) == sorted(RULES)
    assert all(f"| `{consumer.value}` |" in PAGE.read_text() for consumer in Consumer)
