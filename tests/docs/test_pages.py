"""The documentation says what is so: its links resolve, its commands exist, its examples print what it shows."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from inputs import states, write_inputs
from pages import PAGES, ROOT, Block, Page, commands_of, page_id, shows

from fpstate import errors
from fpstate.arch import Cpu
from fpstate.command import main
from fpstate.command import set as set_verb
from fpstate.command import threads as threads_verb
from fpstate.engine import availability
from fpstate.engine.kvm.device import Device
from fpstate.engine.model.scripts import SCRIPTS
from fpstate.errors import UnsupportedHere
from fpstate.image.finding import Finding, Severity
from fpstate.program import BUILTIN, FAULTS, block
from fpstate.source.census import odd_ones
from fpstate.source.process import Snapshot, UnreadThread
from fpstate.source.raw_format import FORMATS
from fpstate.source.rewrite import Rewrite
from fpstate.testing.container import signal_frame

COMMAND_LINE = Page(ROOT / "docs" / "command-line.md")
NEEDS_ENGINE = re.compile(r"fpstate run(?! --engine model)|NativeEngine|fpstate cpu(?! --cpu)")
NEEDS_TRACING = re.compile(r"\$!")
NEEDS_KVM = re.compile(r"fpstate kvm|--engine kvm|KvmEngine")
NOT_RUN = re.compile(r"make |git |python tests/")
SHOWN_ON = ("AuthenticAMD", 26, 0xE7)
"""Vendor, family and XCR0 of the processor whose output the pages show."""

every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def parser_of(verb: str) -> argparse.ArgumentParser:
    (action,) = (
        action for action in main._parser([verb])._actions if isinstance(action, argparse._SubParsersAction)
    )
    return action.choices[verb]


def options_of(verb: str) -> set[str]:
    return {option for option in all_options(parser_of(verb)) if option.startswith("--")}


def all_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of those below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from all_options(below)


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


def test_every_verb_is_documented():
    assert tuple(documented_verbs()) == main.VERBS


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


def fields_of(document: object) -> Iterator[str]:
    """The names in a JSON document, but for those that are registers, layouts or words of a register."""
    if isinstance(document, list):
        for item in document:
            yield from fields_of(item)
    elif isinstance(document, dict):
        for name, value in document.items():
            yield name
            if name not in ("decoded", "layout") and not (name == "registers" and isinstance(value, dict)):
                yield from fields_of(value)


def printed_by(capsys, *command: str) -> set[str]:
    main.main([*command, "--json"])
    return set(fields_of(json.loads(capsys.readouterr().out)))


def documented_fields(verb: str) -> set[str]:
    rows = [row for row in table_rows(COMMAND_LINE, f"fpstate {verb}") if len(row) == 3]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}


@pytest.fixture
def state_files(folder):
    """A state, the same without its XSTATE_BV, and a signal frame without its second magic word."""
    image = states({"zmm31": 42, "mxcsr": 0x9F80})[0].image
    (folder / "state").write_bytes(image.to_bytes())
    (folder / "unstated").write_bytes(image.to_bytes()[:512] + bytes(64) + image.to_bytes()[576:])
    (folder / "frame").write_bytes(signal_frame(image)[:-4])


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("show", "frame"),
        ("check", "unstated --cpu zen4 --fix fixed"),
        ("convert", "state old --from-cpu zen4 --to-cpu haswell --drop hi16_zmm"),
        ("diff", "state unstated --cpu zen4"),
    ],
)
@pytest.mark.usefixtures("state_files")
def test_the_fields_of_each_state_document_are_all_documented(verb, arguments, capsys):
    assert documented_fields(verb) == printed_by(capsys, verb, *arguments.split())


def test_the_fields_of_live_documents_are_all_documented():
    threads = states({}, {}, {"mxcsr": 0x9FC0})
    (flawed,) = states({})
    finding = Finding("SRC001", Severity.NOTE, "written by gdb")
    threads.append(dataclasses.replace(flawed, findings=(finding,)))
    live = Snapshot(1, "x86-64", tuple(threads), (UnreadThread(5, "stuck", 110, "does not stop"),), 0.1, 0.1)
    report = threads_verb.describe("1", threads, odd_ones(threads), live)
    assert documented_fields("threads") == set(fields_of(report))

    before, after = threads[0].image, threads[2].image
    written = set_verb.describe(1, Rewrite(1, before, after, 0.1), ["mxcsr"])
    assert documented_fields("set") == set(fields_of(written))


def test_the_fields_of_the_documents_of_kvm_are_all_documented(folder, capsys):
    if lacking := why_no_kvm():
        pytest.skip(lacking)
    main.main(["kvm", "save", "spin", "--to", "state"])
    capsys.readouterr()
    found: set[str] = set()
    for action in (["info"], ["load", "state"], ["reset"], ["selftest"]):
        main.main(["kvm", *action, "--json"])
        report = json.loads(capsys.readouterr().out)
        for names in ("capabilities", "msrs"):
            report.pop(names, None)
        found |= set(fields_of(report))
    of_faults = {"controls", "differences", "loaded", "read", "register", "wanted", "found"}
    of_names = {
        "capabilities",
        "msrs",
        "dynamic",
        "supported",
        "guest_cpuid",
        "fresh",
        "capability",
        "buffer",
    }
    of_names |= {"image", "guest_default"}
    documented = documented_fields("kvm")
    assert found - of_names <= documented
    assert documented <= found | of_faults | of_names


def test_the_formats_of_raw_bytes_are_all_documented():
    rows = table_rows(COMMAND_LINE, "What SOURCE may be")
    listed = [row[0].strip("`") for row in rows if len(row) == 3 and row[0].startswith("`")]
    assert sorted(listed) == sorted((*FORMATS, "--format"))


def test_an_undocumented_field_would_be_noticed():
    document = {"threads": [{"tid": 1, "registers": {"st0": "0x0"}, "registers_lost": [{"name": "k0"}]}]}
    assert set(fields_of(document)) == {"threads", "tid", "registers", "registers_lost", "name"}


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


def test_the_scripts_of_the_model_are_all_documented():
    rows = table_rows(Page(ROOT / "docs" / "model-contexts.md"), "The built-in scripts")[1:]
    assert [name for row in rows for name in re.findall(r"`([\w-]+)`", row[0])] == list(SCRIPTS)


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
    write_inputs(tmp_path)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    return tmp_path


@cache
def why_not_traced() -> str:
    """Why a process cannot read a sibling of its here; empty where it can."""
    command = [sys.executable, "-m", "fpstate", "show", "--no-values"]
    with subprocess.Popen(["sleep", "60"]) as sibling:
        try:
            result = subprocess.run([*command, str(sibling.pid)], capture_output=True, text=True, timeout=240)
        finally:
            sibling.kill()
    return result.stderr.strip() if result.returncode == 3 else ""


@cache
def why_no_kvm() -> str:
    """Why guests cannot run on KVM here; empty where they can."""
    try:
        Device().close()
    except UnsupportedHere as error:
        return str(error)
    return ""


def run_python(text: str, namespace: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "<documentation>", "exec"), namespace)
    return printed.getvalue()


def run_command(command: str, shown: str) -> None:
    if NOT_RUN.match(command):
        return
    result = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert result.returncode == 0, result.stdout
    depends_on_the_host = any(needs.search(command) for needs in (NEEDS_ENGINE, NEEDS_TRACING, NEEDS_KVM))
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
    left_out: list[str] = []
    for item in page.blocks:
        match item.language:
            case "c":
                (name,) = re.findall(r"/\* ([\w]+\.c):", item.text.splitlines()[0])
                (folder / name).write_text(item.text)
            case "console":
                for command, shown in commands_of(item):
                    if NEEDS_TRACING.search(command) and why_not_traced():
                        left_out.append(why_not_traced())
                    elif NEEDS_KVM.search(command) and why_no_kvm():
                        left_out.append(why_no_kvm())
                    else:
                        run_command(command, shown)
            case "python" if NEEDS_KVM.search(item.text) and why_no_kvm():
                left_out.append(why_no_kvm())
            case "python":
                printed = run_python(item.text, namespace)
                assert item.output is None or printed == item.output
            case language:
                assert language == "text", language
    if left_out:
        pytest.skip(f"{len(left_out)} commands were left out: {left_out[0]}")


def test_a_command_may_have_several_lines():
    block = Block("console", "$ one &\n> two; three\nprinted\n\n$ four\n$ five\n> \n")
    assert commands_of(block) == [("one &\ntwo; three", "printed\n\n"), ("four", ""), ("five", "")]


def test_a_wrong_output_would_be_noticed():
    shown = "1000 vCPUs\n...\n  results  3 checked, 0 wrong\n...\n"
    assert shows(shown, "12 vCPUs\n\n  results   7 checked, 0 wrong\nmore\n", exact=False) is None
    assert shows(shown, "12 vCPUs\n\n  results   7 checked, 0 right\nmore\n", exact=False)
    assert shows(shown, "1000 vCPUs\n", exact=False)
    assert shows("a 1\n", "a 2\n", exact=False) is None
    assert shows("a 1\n", "a 2\n", exact=True)
    assert shows("a\n", "a\nb\n", exact=True)
    assert shows("tid 7 0x1f80\n", "tid 9 0x9fa0\n", exact=False) is None
    assert shows("tid 7 0x1f80\n", "tid 7 none\n", exact=False)
    assert shows("one switch 3 ns\n", "one switch 1.5 us\n", exact=False) is None
