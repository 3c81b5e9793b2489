"""The page on guest states has the file as the code writes it, and every finding."""

from __future__ import annotations

import inspect
import re

import pytest
from pages import ROOT, Page

from fpstate.source import guest_state, state_file
from fpstate.source.guest_state import PkruPolicy
from fpstate.source.state_file import MAGIC

PAGE = Page(ROOT / "docs" / "guest-state.md")
SIZES = {
    "Header": state_file._HEADER.size,
    "Section": state_file._SECTION.size,
    "CPU": state_file._CPU.size,
    "CTRL": state_file._CONTROL.size,
    "IMAG": state_file._IMAGE.size,
    "REGS": state_file._REGISTERS.size,
    "PROG": state_file._PROGRAM.size,
    "MEMR": state_file._ADDRESS.size,
}


def fields(heading: str) -> list[tuple[int, int]]:
    section = re.search(rf"^### {heading}$(.*?)(?=^##|\Z)", PAGE.text, re.MULTILINE | re.DOTALL)
    assert section, heading
    return [
        (int(offset), int(size)) for offset, size in re.findall(r"^\| (\d+) \| (\d+) \|", section[1], re.M)
    ]


@pytest.mark.parametrize("heading", SIZES)
def test_the_fields_of_each_part_follow_each_other_up_to_its_size(heading):
    end = 0
    for offset, size in fields(heading):
        assert offset == end
        end = offset + size
    assert end == SIZES[heading]


def test_every_section_has_a_table():
    assert {tag.decode().strip() for tag in state_file._TAGS} == set(SIZES) - {"Header", "Section"}


def test_the_first_bytes_are_those_of_the_page():
    assert MAGIC.hex(" ").upper() in PAGE.text


def test_every_finding_is_documented():
    raised = set(re.findall(r'"(GS\d+)"', inspect.getsource(guest_state)))
    assert raised == set(re.findall(r"^\| (GS\d+) \|", PAGE.text, re.MULTILINE))


def test_every_policy_is_documented():
    assert {policy.value for policy in PkruPolicy} <= set(
        re.findall(r"^\| `([\w-]+)`", PAGE.text, re.MULTILINE)
    )
