"""Every verb with streams that are closed, full, or that nobody reads: the same exit code, and nothing else lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.image import Image

VERBS = {
    "run": ["run", "--no-audit", "--vcpus", "3", "--engine", "model"],
    "show": ["show", "STATE", "--cpu", "zen4", "--all"],
    "cpu": ["cpu", "--cpu", "zen4", "--json"],
    "threads": ["threads", "/dev/null"],
    "set": ["set", "0", "mxcsr=0x1f80"],
    "gdb": ["gdb"],
    "convert": ["convert", "STATE", "OUT", "--from-cpu", "zen4", "--to-cpu", "zen4"],
    "diff": ["diff", "STATE", "STATE", "--cpu", "zen4"],
    "check": ["check", "STATE", "--cpu", "zen4"],
    "kvm": ["kvm", "load", "/nonexistent.fpvso"],
    "include": ["include"],
    "help": ["--help"],
    "version": ["--version"],
    "usage": ["show"],
}
"""Of every verb but ``bench``: one that does its work, or one that says what is wrong."""
LONG = os.environ.get("FPSTATE_LONG") == "1"
REDIRECTIONS = ("2>&-", "<&- >&- 2>&-", *(("2>/dev/full", "<&-", ">&-") if LONG else ()))
SPEAK = [verb for verb in VERBS if verb not in ("threads", "set", "kvm", "usage", "diff", "convert")]
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
}
"""With buffers: what a stream did not take is flushed again when Python ends."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cpu = Cpu.catalog("zen4")
    folder = tmp_path_factory.mktemp("streams")
    ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    path = folder / "state.bin"
    path.write_bytes(Image.initial(Layout.standard(cpu, cpu.user_mask)).to_bytes())
    return path


def run(arguments: list[str], state: Path, redirections: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command from a shell that redirects; ``OUT`` is a file that does not exist yet."""
    out = state.with_name("out.bin")
    out.unlink(missing_ok=True)
    places = {"STATE": str(state), "OUT": str(out)}
    words = [sys.executable, "-m", "fpstate", *(places.get(word, word) for word in arguments)]
    shell = ["bash", "-c", f'"$@" {redirections}', "bash", *words]
    return subprocess.run(
        shell,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
        check=False,
    )


def assert_quiet(done: subprocess.CompletedProcess[str]) -> None:
    for noise in ("Traceback", "Exception ignored", "AttributeError"):
        assert noise not in done.stdout + done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_an_exit_code_is_that_of_the_verb_whatever_the_streams(verb, state):
    """And each stream gets what it gets otherwise: no error goes to standard output for want of the other."""
    arguments = VERBS[verb]
    usual = run(arguments, state)
    steady = verb != "run"
    for redirections in REDIRECTIONS:
        done = run(arguments, state, redirections)
        assert_quiet(done)
        assert done.returncode == usual.returncode, redirections
        if ">&-" not in redirections.replace("2>&-", ""):
            assert done.stdout == usual.stdout or not steady
            assert bool(done.stdout) == bool(usual.stdout)
        if "2>" not in redirections:
            assert done.stderr == usual.stderr
        if verb == "convert":
            assert state.with_name("out.bin").stat().st_size == state.stat().st_size


@pytest.mark.parametrize("verb", SPEAK if LONG else ["show", "help"])
def test_a_full_disk_and_a_reader_that_is_gone_are_2(verb, state):
    full = run(VERBS[verb], state, ">/dev/full")
    assert_quiet(full)
    assert (full.returncode, "No space left on device" in full.stderr) == (2, True)
    both = run(VERBS[verb], state, ">/dev/full 2>&1")
    assert (both.returncode, both.stdout, both.stderr) == (2, "", "")
    reader, writer = os.pipe()
    os.close(reader)
    words = [str(state) if word == "STATE" else word for word in VERBS[verb]]
    words = [str(state.with_name("out.bin")) if word == "OUT" else word for word in words]
    gone = subprocess.run(
        [sys.executable, "-m", "fpstate", *words],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (2, "")


@pytest.mark.parametrize("verb", ["diff", "usage", "set"])
def test_a_message_that_standard_error_does_not_take_changes_nothing(verb, state):
    usual, full = run(VERBS[verb], state), run(VERBS[verb], state, "2>/dev/full")
    assert usual.stderr
    assert (full.returncode, full.stdout) == (usual.returncode, usual.stdout)


def test_a_state_for_a_closed_standard_output_is_not_lost_in_silence(state):
    arguments = ["convert", "STATE", "-", "--from-cpu", "zen4", "--to-cpu", "zen4"]
    done = run(arguments, state, ">&-")
    assert done.returncode == 2
    assert "standard output is closed" in done.stderr


def test_a_closed_standard_input_holds_no_state(state):
    done = run(["show", "-"], state, "<&-")
    assert done.returncode == 2
    assert "0 bytes" in done.stderr


def test_files_do_not_get_the_number_of_a_closed_stream(state):
    """Else what is written to standard error would end in a file that was opened meanwhile."""
    script = (
        "import os, sys\n"
        "from fpstate.command import cpu\n"
        "from fpstate.command.main import main\n"
        "def run(args):\n"
        "    number = os.open(os.devnull, os.O_RDONLY)\n"
        "    return 0 if number > 2 else 99\n"
        "cpu.run = run\n"
        "sys.exit(main(['cpu']))\n"
    )
    for closed in ("2>&-", ">&-", "<&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-c", script], check=False
        )
        assert done.returncode == 0, closed
