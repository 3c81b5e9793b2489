"""What files, processes and arguments are called reaches no terminal as it is, in any verb."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile_terminal import PAYLOADS, NamedProcess, named_process, on_a_terminal, shown, wrong_with

from fpstate.arch import Cpu, Layout
from fpstate.command import output
from fpstate.command.main import VERBS, main
from fpstate.engine.kvm.engine import missing as missing_for_kvm
from fpstate.program.installed import flat_file
from fpstate.source.state_file import read_state, write_state
from fpstate.testing import build_image
from fpstate.testing.container import criu_core


@dataclass(frozen=True)
class Given:
    """A hostile ``name``, and what bears it in the current folder."""

    name: str
    pid: str


@dataclass(frozen=True)
class Case:
    """Arguments of a verb; ``shows``: the name is part of what it prints, where that is not JSON."""

    arguments: Callable[[Given], list[str]]
    shows: bool = True
    needs: str = ""

    @property
    def verb(self) -> str:
        return self.arguments(Given("NAME", "PID"))[0]


# fmt: off
CASES = {
    "show a process":           Case(lambda g: ["show", g.pid]),
    "show a process, JSON":     Case(lambda g: ["show", g.pid, "--json"], shows=False),
    "show a guest state":       Case(lambda g: ["show", "a.fpvso"], needs="kvm"),
    "show a checkpoint":        Case(lambda g: ["show", "core-1.img"], needs="criu"),
    "show no file":             Case(lambda g: ["show", f"no/{g.name}"]),
    "show no state":            Case(lambda g: ["show", g.name, "--cpu", g.name]),
    "show no register":         Case(lambda g: ["show", g.pid, "--register", g.name]),
    "show a strange layout":    Case(lambda g: ["show", "state.bin", "--layout", "layout.json"], shows=False),
    "show a strange path":      Case(lambda g: ["show", "state.bin", "--layout", f"no/{g.name}"]),
    "threads of a process":     Case(lambda g: ["threads", g.pid]),
    "threads, JSON":            Case(lambda g: ["threads", g.pid, "--json"], shows=False),
    "threads of a checkpoint":  Case(lambda g: ["threads", "core-1.img"], needs="criu"),
    "threads of no core":       Case(lambda g: ["threads", f"no/{g.name}"]),
    "check a file":             Case(lambda g: ["check", g.name, "--cpu", "zen4"]),
    "check a file, JSON":       Case(lambda g: ["check", g.name, "--cpu", "zen4", "--json"], shows=False),
    "check a process":          Case(lambda g: ["check", g.pid], shows=False),
    "check and fix":            Case(lambda g: ["check", "state.bin", "--cpu", "zen3", "--fix", f"out{g.name}"]),
    "check and fix nowhere":    Case(lambda g: ["check", "state.bin", "--cpu", "zen3", "--fix", f"no/{g.name}"]),
    "diff":                     Case(lambda g: ["diff", "state.bin", g.name, "--cpu", g.name]),
    "diff, JSON":               Case(lambda g: ["diff", "state.bin", g.name, "--cpu", "zen4", "--json"], shows=False),
    "convert":                  Case(lambda g: ["convert", "state.bin", f"no/{g.name}", "--cpu", "zen4"]),
    "convert and drop":         Case(lambda g: ["convert", "state.bin", "out", "--cpu", "zen4", "--drop", g.name]),
    "convert, JSON":            Case(lambda g: ["convert", g.name, f"out{g.name}", "--cpu", "zen4", "--json"],
                                     shows=False),
    "convert a process":        Case(lambda g: ["convert", g.pid, "out", "--to-cpu", g.name]),
    "set a register":           Case(lambda g: ["set", g.pid, f"{g.name}=1"]),
    "set a value":              Case(lambda g: ["set", g.pid, f"mxcsr={g.name}"]),
    "set no process":           Case(lambda g: ["set", g.name, "mxcsr=1"]),
    "set":                      Case(lambda g: ["set", g.pid, "mxcsr=0x1f80"], shows=False),
    "cpu":                      Case(lambda g: ["cpu", "--cpu", g.name]),
    "run no program":           Case(lambda g: ["run", "--no-audit", g.name + "x"]),
    "run a program":            Case(lambda g: ["run", "--no-audit", "--vcpus", "1", "--flat", f"./{g.name}.bin"],
                                     needs="native"),
    "run on no processor":      Case(lambda g: ["run", "--engine", "model", "--cpu", g.name]),
    "run nothing like it":      Case(lambda g: ["run", "--request", g.name]),
    "kvm load":                 Case(lambda g: ["kvm", "load", "a.fpvso"], needs="kvm"),
    "kvm load, JSON":           Case(lambda g: ["kvm", "load", "a.fpvso", "--json"], shows=False, needs="kvm"),
    "kvm load no state":        Case(lambda g: ["kvm", "load", g.name], needs="kvm"),
    "kvm load and lose":        Case(lambda g: ["kvm", "load", "a.fpvso", "--allow-loss", g.name]),
    "kvm save":                 Case(lambda g: ["kvm", "save", "spin", "--to", f"out{g.name}"], needs="kvm"),
    "kvm save no program":      Case(lambda g: ["kvm", "save", g.name, "--to", "out"], needs="kvm"),
    "kvm reset":                Case(lambda g: ["kvm", "reset", g.name], needs="kvm"),
    "kvm":                      Case(lambda g: ["kvm", g.name]),
    "gdb":                      Case(lambda g: ["gdb", g.name]),
    "include":                  Case(lambda g: ["include", g.name]),
    "bench":                    Case(lambda g: ["bench", g.name]),
    "bench --plot":             Case(lambda g: ["bench", "--plot", f"no{g.name}/out", "switch"]),
    "no verb":                  Case(lambda g: [g.name]),
    "no option":                Case(lambda g: ["cpu", f"--{g.name}"]),
}
# fmt: on


@pytest.fixture(scope="module")
def process() -> Iterator[NamedProcess]:
    with named_process() as found:
        yield found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A guest state, where KVM makes one."""
    path = tmp_path_factory.mktemp("saved") / "a.fpvso"
    if missing_for_kvm():
        return None
    assert main(["kvm", "save", "spin", "--argument", "1000000", "--to", str(path)]) == 0
    return path


@pytest.fixture
def given(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    process: NamedProcess, saved: Path | None,
) -> Given:  # fmt: skip
    payload = PAYLOADS[request.param]
    name = os.fsdecode(payload)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    image = build_image(Layout.standard(Cpu.catalog("zen4")), {"zmm17": 17, "pkru": 0x5554})
    for file in ("state.bin", name):
        Path(file).write_bytes(image.to_bytes())
    text = payload.decode("utf-8", "replace")
    Path("layout.json").write_text(json.dumps({"layout": {text: text}, "format": text}))
    shutil.copy(flat_file("faults/divide_by_zero"), f"./{name}.bin")
    if saved is not None:
        found = read_state(saved)
        assert found.checkpoint is not None
        write_state("a.fpvso", dataclasses.replace(
            found, checkpoint=dataclasses.replace(found.checkpoint, program=text)))  # fmt: skip
    else:
        Path("a.fpvso").write_bytes(b"")
    try:
        Path("core-1.img").write_bytes(criu_core(image, comm=text))
    except ImportError:
        Path("core-1.img").write_bytes(b"")
    process.rename(payload)
    return Given(name, str(process.pid))


def check_needs(needs: str, request: pytest.FixtureRequest) -> None:
    if needs == "kvm" and (lacking := missing_for_kvm()):
        pytest.skip(lacking)
    if needs == "criu":
        pytest.importorskip("google.protobuf", reason="protobuf is not installed (the extra criu)")
    if needs == "native":
        request.getfixturevalue("native")


def test_every_verb_is_in_the_table():
    assert {case.verb for case in CASES.values()} >= set(VERBS)


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
@pytest.mark.parametrize("needs", ["", "native", "kvm", "criu"])
@pytest.mark.parametrize("given", PAYLOADS, indirect=True)
def test_a_terminal_gets_names_made_printable(given, needs, term, request, monkeypatch):
    check_needs(needs, request)
    monkeypatch.setenv("TERM", term)
    payload, problems = os.fsencode(given.name), {}
    for title, case in CASES.items():
        if case.needs != needs:
            continue
        _, sent = on_a_terminal(*case.arguments(given))
        wrong = wrong_with(sent)
        if (
            case.shows
            and payload.decode("utf-8", "replace").isascii()
            and shown(payload) not in sent.decode()
        ):
            wrong.append("the name is not there")
        if wrong:
            problems[title] = wrong
    assert problems == {}


RAW = {
    "a process": "show a process",
    "a file": "check a file",
    "an error": "set a register",
    "a program": "run a program",
}


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("case", RAW.values(), ids=RAW)
@pytest.mark.parametrize("given", ["clear", "colour", "line", "direction"], indirect=True)
@pytest.mark.parametrize("term", ["dumb", "xterm-256color"])
def test_a_verb_that_prints_names_as_they_are_is_caught(given, case, term, monkeypatch):
    monkeypatch.setenv("TERM", term)
    for cleaner in ("printable", "printable_lines"):
        monkeypatch.setattr(output, cleaner, lambda text: text)
    _, sent = on_a_terminal(*CASES[case].arguments(given))
    assert wrong_with(sent)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("given", ["line"], indirect=True)
@pytest.mark.parametrize("case", ["check a file", "set a register", "run a program"])
def test_a_name_that_forges_a_line_is_caught_where_only_streams_are_cleaned(given, case, monkeypatch):
    monkeypatch.setattr(output, "printable", lambda text: text)
    assert "forged" in str(wrong_with(on_a_terminal(*CASES[case].arguments(given))[1]))


def test_whatever_else_writes_to_the_streams_is_cleaned():
    def verb(arguments: list[str]) -> int:
        print("out\x1b[2J", "\x9b", sep="\t")
        sys.stdout.writelines(["\x9b5m", "\u202e\n"])
        print("err\x07", file=sys.stderr)
        return 0

    assert wrong_with(on_a_terminal(run=verb)[1])
    code, sent = on_a_terminal(run=output.with_clean_streams(verb))
    assert (code, sent.replace(b"\t", b" ")) == (
        0,
        b"out\\x1b[2J \\x9b\n\\x9b5m\\u202e\nerr\\x07\n",
    )


def test_streams_are_as_they_were_afterwards():
    before = sys.stdout, sys.stderr

    @output.with_clean_streams
    def fails() -> None:
        assert sys.stdout is not before[0]
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert (sys.stdout, sys.stderr) == before


def test_a_stream_that_cannot_encode_a_name_gets_an_escape(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    output.with_clean_streams(lambda: output.lines(["na\u00efve \u202e"]))()
    sys.stdout.flush()
    assert written.getvalue() == b"na\\xefve \\u202e\n"


@pytest.mark.parametrize("given", ["colour"], indirect=True)
def test_names_are_no_markup(given, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    _, sent = on_a_terminal("show", "state.bin", "--cpu", "zen4")
    assert b"\x1b[" in sent  # rich draws

    def draw(arguments: list[str]) -> int:
        output.console().print("[red]name[/red] :smile: \x1b[31m")
        return 0

    assert on_a_terminal(run=draw)[1] == b"[red]name[/red] :smile: \\x1b[31m\n"


@pytest.mark.parametrize("given", ["colour"], indirect=True)
@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/proc/self/fd/1"])
def test_a_state_is_not_written_to_a_terminal(given, out):
    if out == "-":
        code, sent = on_a_terminal("convert", "state.bin", out, "--cpu", "zen4")
        assert code == 2
        assert b"standard output: is a terminal, and a state is no text" in sent
        assert wrong_with(sent) == []
        return
    parent, child = os.openpty()
    kept = os.dup(1)
    try:
        os.dup2(child, 1)
        assert main(["convert", "state.bin", out, "--cpu", "zen4"]) == 2
    finally:
        os.dup2(kept, 1)
    os.set_blocking(parent, False)
    with pytest.raises(BlockingIOError):
        os.read(parent, 1)
    for each in (parent, child, kept):
        os.close(each)


def test_paths_of_ours_are_exact_for_programs_and_printable_on_terminals(capfdbinary):
    name = os.fsdecode("/a\u00a0b\x9b/é".encode() + b"\xff")
    output.path(name)
    assert capfdbinary.readouterr().out == os.fsencode(name) + b"\n"

    def verb(arguments: list[str]) -> int:
        output.path(name)
        return 0

    assert on_a_terminal(run=verb)[1].decode() == "/a\\xa0b\\x9b/é\\udcff\n"


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("given", ["clear", "C1 byte"], indirect=True)
def test_the_command_itself_cleans_what_it_prints(given, monkeypatch):
    """In a process of its own, as people start it."""

    def command(arguments: list[str]) -> int:
        return subprocess.run(
            [sys.executable, "-m", "fpstate", *arguments], stdout=sys.stdout, stderr=sys.stderr, check=False
        ).returncode

    for arguments in (["show", given.pid], ["check", given.name, "--cpu", "zen4"], [given.name]):
        _, sent = on_a_terminal(*arguments, run=command)
        assert sent
        assert wrong_with(sent) == []
    monkeypatch.setenv("FPSTATE_CORE", given.name)
    code, sent = on_a_terminal("cpu", run=command)
    assert (code, wrong_with(sent)) == (2, [])
    assert b"FPSTATE_CORE is" in sent
