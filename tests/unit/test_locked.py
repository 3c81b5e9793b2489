"""What CI installs is locked: every requirement has a version that pyproject.toml allows, and hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "tools/locked.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
INSTALLED = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *EXTRAS["test"],
    *EXTRAS["lint"],
]


def problems(lock: str, requirements: list[str]) -> list[str]:
    """What a lock lacks."""
    entries = re.split(r"\n(?=\S)", lock.strip())
    versions: dict[str, str] = {}
    found = []
    for entry in entries:
        head, *hashes = entry.replace("\\\n", "\n").split("\n")
        pinned = Requirement(head)
        match = re.fullmatch(r"==([^,*]+)", str(pinned.specifier))
        if match is None:
            found.append(f"{pinned.name} has no version")
            continue
        versions[canonicalize_name(pinned.name)] = match[1]
        if not hashes or not all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", each) for each in hashes):
            found.append(f"{pinned.name} has no hashes")
    for each in map(Requirement, requirements):
        version = versions.get(canonicalize_name(each.name))
        if version is None:
            found.append(f"{each.name} is not locked")
        elif version not in each.specifier:
            found.append(f"{each.name} {version} is not {each.specifier}")
    return found


def test_every_requirement_is_locked():
    assert problems(LOCK, INSTALLED) == []


@pytest.mark.parametrize(
    ("lock", "requirements", "problem"),
    [
        (LOCK, [*INSTALLED, "cattrs"], "cattrs is not locked"),
        (LOCK, [*INSTALLED, "rich<1"], "rich .* is not <1"),
        (re.sub(r"(ruff==\S+) \\\n( +--hash\S+(?: \\)?\n)+", r"\1\n", LOCK), INSTALLED, "ruff has no hashes"),
        (LOCK.replace("ruff==", "ruff>="), INSTALLED, "ruff has no version"),
    ],
)
def test_a_lock_that_lacks_something_is_caught(lock, requirements, problem):
    assert re.search(problem, "\n".join(problems(lock, requirements)))


def test_make_asks_for_the_hashes_in_ci_alone():
    text = (ROOT / "Makefile").read_text()
    assert "--require-hashes --requirement $(LOCK)" in text
    (locked,) = re.findall(r"^locked = (.*)$", text, re.MULTILINE)
    (ours,) = re.findall(r"^OURS := (.*)$", text, re.MULTILINE)
    assert locked.startswith("$(if $(CI),")
    assert ours == "$(if $(CI),--no-build-isolation --no-deps)"
