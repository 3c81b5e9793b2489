"""The documentation as data: pages, their headings, links, code blocks and the commands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRIMMED = "..."
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"\bfpstate +([a-z][\w-]*)([^`\n;|#]*)")


@dataclass(frozen=True)
class Block:
    """A fenced piece of a page, and the output that the page shows for it, in the ``text`` block behind it."""

    language: str
    text: str
    output: str | None = None


@dataclass(frozen=True)
class Page:
    """One page of the documentation."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        return _BLOCK.sub("", self.text)

    @property
    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The names by which headings can be linked to."""
        headings = re.findall(r"^#+ +(.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @property
    def blocks(self) -> list[Block]:
        """The code blocks in order."""
        found: list[Block] = []
        end = 0
        for match in _BLOCK.finditer(self.text):
            language, text = match[1], match[2]
            directly_behind = not self.text[end : match.start()].strip()
            if language == "text" and found and directly_behind:
                found[-1] = Block(found[-1].language, found[-1].text, text)
            else:
                found.append(Block(language, text))
            end = match.end()
        return found

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """Verb and options of each ``fpstate VERB --option`` in console blocks and in code within sentences."""
        lines = [command for command, _ in self.console]
        spans = re.findall(r"`([^`\n]+)`", self.prose)
        return [
            (verb, re.findall(r"(?<!\S)--[a-z-]+", rest))
            for source in (*lines, *(span for span in spans if span.startswith("fpstate ")))
            for verb, rest in _COMMAND.findall(source)
        ]

    @property
    def console(self) -> list[tuple[str, str]]:
        """Each command of the console blocks, with the output that is shown for it."""
        return [pair for block in self.blocks if block.language == "console" for pair in commands_of(block)]


def commands_of(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown for it; ``> `` continues a command."""
    found = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE)
    return [(command.replace("\n> ", "\n").rstrip("\n"), output) for command, output in found]


PAGES = [
    Page(ROOT / "README.md"),
    Page(ROOT / "SECURITY.md"),
    *map(Page, sorted((ROOT / "docs").glob("*.md"))),
]


def page_id(page: Page) -> str:
    return str(page.path.relative_to(ROOT))


def shows(expected: str, actual: str, *, exact: bool) -> str | None:
    """None where ``actual`` has the lines of ``expected`` in order, nothing left out but at ``...``; else what differs.

    Unless ``exact``, any number may stand for any other of its kind, and any unit of time for any other.
    """
    pattern, rest = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?(e-?\d+)?( (ns|us|ms|s)\b)?"), actual.splitlines()

    def same(line: str, other: str) -> bool:
        if exact:
            return line == other
        return " ".join(pattern.sub("#", line).split()) == " ".join(pattern.sub("#", other).split())

    may_skip = False
    for line in expected.splitlines():
        if line == TRIMMED:
            may_skip = True
            continue
        while may_skip and rest and not same(line, rest[0]):
            rest.pop(0)
        if not rest:
            return f"{line!r} is shown, and was not printed"
        if not same(line, rest[0]):
            return f"{line!r} is shown, and {rest[0]!r} was printed"
        rest.pop(0)
        may_skip = False
    return None if may_skip or not rest else f"{rest[0]!r} was printed, and is not shown"
