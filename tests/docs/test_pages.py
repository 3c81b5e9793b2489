"""The documentation says what is so: its links resolve, its commands exist, its examples print what it shows."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Page, commands_of, page_id, shows

from fpstate import errors
from fpstate.arch import Cpu
from fpstate.command import main
from fpstate.engine import availability
from fpstate.errors import UnsupportedHere
from fpstate.program import BUILTIN, FAULTS, block

COMMAND_LINE = Page(ROOT / "docs" / "command-line.md")
NEEDS_ENGINE = re.compile(r"fpstate run|NativeEngine|fpstate cpu(?! --cpu)")
NOT_RUN = re.compile(r"make |git ")
SHOWN_ON = ("AuthenticAMD", 25, 0x7)
"""Vendor, family and XCR0 of the processor whose output the pages show."""

every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def parser_of(verb: str) -> argparse.ArgumentParser:
    (action,) = (
        action for action in main._parser([verb])._actions if isinstance(action, argparse._SubParsersAction)
    )
    return action.choices[verb]


def options_of(verb: str) -> set[str]:
    found = {option for action in parser_of(verb)._actions for option in action.option_strings}
    return {option for option in found if option.startswith("--")}


def host_is_as_shown() -> bool:
    try:
        cpu = Cpu.host()
    except UnsupportedHere:
        return False
    return (cpu.vendor, cpu.family, cpu.enabled_xcr0) == SHOWN_ON


def table_rows(page: Page, heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, without their first rows."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", page.text, re.MULTILINE | re.DOTALL)
    assert section, heading
    rows = [line.strip("|").split("|") for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("- ")]


# Links and pictures


@every_page
def test_links_resolve(page):
    for link in page.links:
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = page.path.parent / file if file else page.path
        assert target.exists(), link
        if anchor:
            assert anchor in Page(target).anchors, link


def test_every_page_is_reached_from_the_index():
    index = next(page for page in PAGES if page.path.name == "index.md")
    linked = {(index.path.parent / link.partition("#")[0]).resolve() for link in index.links}
    assert {page.path for page in PAGES if page is not index} <= linked


def test_the_picture_is_well_formed_and_described():
    tree = ET.parse(ROOT / "docs" / "picture.svg")
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert {"title", "desc", "text"} <= names
    words = " ".join(tree.getroot().itertext())
    assert all(word in words for word in ("Manager", "Pool", "Scheduler", "VSO", "vCPU", "processor"))


@every_page
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`((?:tests|examples|docs|src|programs)/[\w./-]+)`", page.text):
        assert (ROOT / name).exists(), name


# Commands


@every_page
def test_verbs_and_options_exist(page):
    for verb, options in page.commands:
        assert verb in main.VERBS, verb
        assert set(options) <= options_of(verb), (verb, options)


def test_an_invented_option_would_be_noticed(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("Say `fpstate run --faster`.\n\n```console\n$ fpstate fly --high\n```\n")
    assert Page(path).commands == [("fly", ["--high"]), ("run", ["--faster"])]
    assert "--faster" not in options_of("run")


def documented_verbs() -> list[str]:
    return re.findall(r"^## fpstate (\w+)$", COMMAND_LINE.text, re.MULTILINE)


@pytest.mark.parametrize("verb", documented_verbs())
def test_the_options_of_a_documented_verb_are_all_documented(verb):
    assert verb in main.VERBS
    rows = table_rows(COMMAND_LINE, f"fpstate {verb}")
    listed = {match[1] for row in rows if (match := re.match(r"`(--[\w-]+)", row[0]))}
    assert listed == options_of(verb) - {"--help"}


def test_the_defaults_of_run_are_those_of_the_parser():
    parser = parser_of("run")
    defaults = {
        row[0].strip("`").split()[0]: row[2].strip("`")
        for row in table_rows(COMMAND_LINE, "fpstate run")
        if len(row) == 3
    }
    stated = {name: default for name, default in defaults.items() if re.fullmatch(r"\d+\w*", default)}
    assert set(stated) >= {"--vcpus", "--quantum", "--processors", "--seed", "--timeout", "--memory"}
    for name, default in stated.items():
        assert parser.parse_args([name, default]) == parser.parse_args([]), name


def test_the_fields_of_the_json_are_all_documented(capsys):
    if lacking := [
        engine.reason for engine in availability() if engine.name == "native" and not engine.works
    ]:
        pytest.skip(lacking[0])
    assert main.main(["run", "--json", "--no-audit", "--vcpus", "1", "spin"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = [row for row in table_rows(COMMAND_LINE, "fpstate run") if len(row) == 2]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert listed == set(report)


def test_the_fields_of_the_processor_are_all_documented(capsys):
    main.main(["cpu", "--json", "--cpu", "zen4"])
    (sentence,) = re.findall(r"^Fields of the JSON: (.*?)\.", COMMAND_LINE.text, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(json.loads(capsys.readouterr().out))


def test_exit_codes_are_those_of_the_errors():
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", COMMAND_LINE.text, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {getattr(kind, "exit_code", 2) for kind in kinds} <= listed
    assert listed == {0, 1, 2, 3, 4, 130}


# Guest programs


def test_the_built_in_programs_are_all_documented():
    page = Page(ROOT / "docs" / "guest-programs.md")
    rows = table_rows(page, "The built-in ones")[1:]
    assert [row[0].strip("`") for row in rows] == list(BUILTIN)
    for name in re.findall(r"`faults/(\w+)`", page.text):
        assert name == "NAME" or name in FAULTS


def test_the_offsets_of_the_block_are_those_of_the_host():
    rows = table_rows(Page(ROOT / "docs" / "guest-programs.md"), "The block")[1:]
    names = (
        "MAGIC",
        "SEED",
        "FEATURES",
        "ARGUMENT",
        "INPUT_SIZE",
        "RESULT_SIZE",
        "STATUS",
        "INPUT",
        "RESULT",
    )
    assert [int(row[0]) for row in rows] == [getattr(block, name) for name in names]


# Examples


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with the commands of this environment first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def run_python(text: str, namespace: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<documentation>", "exec"), namespace)
    return printed.getvalue()


def run_command(command: str, shown: str) -> None:
    if NOT_RUN.match(command):
        return
    result = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout
    depends_on_the_host = bool(NEEDS_ENGINE.search(command))
    if shown and (host_is_as_shown() or not depends_on_the_host):
        assert (problem := shows(shown, result.stdout, exact=not depends_on_the_host)) is None, problem


@every_page
def test_examples_do_what_the_page_shows(page, folder):
    """From top to bottom: C is saved under the name in its first line, commands are run, Python is executed."""
    code = "".join(item.text for item in page.blocks if item.language in ("python", "console"))
    lacking = [engine.reason for engine in availability() if engine.name == "native" and not engine.works]
    if NEEDS_ENGINE.search(code) and lacking:
        pytest.skip(lacking[0])
    if "gcc" in code and not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    if "fpstate " in code and not shutil.which("fpstate", path=os.environ["PATH"]):
        pytest.skip("the command fpstate is not installed")
    namespace: dict[str, object] = {}
    for item in page.blocks:
        match item.language:
            case "c":
                (name,) = re.findall(r"/\* ([\w]+\.c):", item.text.splitlines()[0])
                (folder / name).write_text(item.text)
            case "console":
                for command, shown in commands_of(item):
                    run_command(command, shown)
            case "python":
                printed = run_python(item.text, namespace)
                assert printed == (item.output or "")
            case language:
                assert language == "text", language


def test_a_wrong_output_would_be_noticed():
    shown = "1000 vCPUs\n...\n  results  3 checked, 0 wrong\n...\n"
    assert shows(shown, "12 vCPUs\n\n  results   7 checked, 0 wrong\nmore\n", exact=False) is None
    assert shows(shown, "12 vCPUs\n\n  results   7 checked, 0 right\nmore\n", exact=False)
    assert shows(shown, "1000 vCPUs\n", exact=False)
    assert shows("a 1\n", "a 2\n", exact=False) is None
    assert shows("a 1\n", "a 2\n", exact=True)
    assert shows("a\n", "a\nb\n", exact=True)
    assert shows("one switch 3 ns\n", "one switch 1.5 us\n", exact=False) is None
