"""Ctrl-C at any moment of the command: exit code 130, nothing else said, and no interrupt lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fpstate.engine.kvm.engine import missing as missing_for_kvm

SCRIPT = Path(__file__).with_name("interrupted_command.py")
LONG = os.environ.get("FPSTATE_LONG") == "1"
CPU = ["cpu", "--cpu", "zen4"]
RUN = ["run", "--no-audit", "--vcpus", "60", "--argument", "3"]


def command(kind: str, number: int, log: Path, arguments: list[str], *, entry: str = "start", **options):
    return subprocess.run(
        [sys.executable, SCRIPT, kind, str(number), entry, log, *arguments],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def moments(kind: str, log: Path, arguments: list[str]) -> int:
    """How many there are where nobody interrupts."""
    done = command(kind, -1, log, arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return int(log.read_text())


def chosen(count: int, tries: int) -> list[int]:
    """The first, the last, and so many in all."""
    return sorted({round(place * (count - 1) / (tries - 1)) for place in range(min(tries, count))})


@pytest.mark.parametrize("arguments", [CPU, RUN], ids=["cpu", "run"])
def test_an_interrupt_at_an_import_is_130_and_nothing_is_said(native, arguments, tmp_path):
    log = tmp_path / "log"
    count = moments("import", log, arguments)
    assert count > 50
    for number in range(count) if LONG else chosen(count, 5):
        done = command("import", number, log, arguments)
        assert log.read_text() == "sent"
        assert (done.returncode, done.stderr) == (130, ""), number


def test_without_the_first_lines_there_is_a_traceback(tmp_path):
    done = command("import", 0, tmp_path / "log", CPU, entry="main")
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("engine", ["native", "kvm", "model"])
def test_an_interrupt_at_any_call_of_a_run_is_130(native, engine, tmp_path):
    """Three moments in CI, 40 with FPSTATE_LONG=1, from the first call of a function to near the last."""
    if engine == "kvm" and (absent := missing_for_kvm()):
        pytest.skip(absent)
    arguments, log = [*RUN, "--engine", engine], tmp_path / "log"
    if engine == "model":
        arguments = ["run", "--no-audit", "--engine", "model", "--vcpus", "20"]
    count = moments("call", log, arguments)
    for number in chosen(count * 9 // 10, 40 if LONG else 3):
        number = max(number, 1)  # 0 is the call of the first lines themselves
        log.write_text("")
        done = command("call", number, log, arguments)
        if log.read_text() != "sent":  # there were fewer calls this time
            continue
        assert (done.returncode, done.stderr) == (130, ""), number


SWALLOWED = """
import os, signal, sys, time, weakref
from fpstate.command import cpu
from fpstate.command.start import start
from fpstate.command.main import main

class Something:
    pass

def interrupt(reference):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass

def run(args):
    something = Something()
    kept = weakref.ref(something, interrupt)
    del something
    end = time.monotonic() + ROOM
    while time.monotonic() < end:
        pass
    print("went on")
    return 0

cpu.run = run
sys.argv = ["fpstate", "cpu"]
sys.exit({entry}())
"""


def swallowed(entry: str, room: float) -> subprocess.CompletedProcess[str]:
    script = SWALLOWED.replace("{entry}", entry).replace("ROOM", str(room))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_an_interrupt_that_python_can_only_report_is_raised_again():
    done = swallowed("start", 100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_it_would_be_lost_otherwise():
    done = swallowed("main", 0.01)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "Exception ignored" in done.stderr


def test_who_ignores_interrupts_goes_on_ignoring_them(tmp_path):
    log = tmp_path / "log"
    done = command("import", 3, log, CPU, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert log.read_text() == "sent"
    assert (done.returncode, done.stderr) == (0, "")
    assert "zen4" in done.stdout


def test_both_ways_to_start_it_begin_with_these_lines():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="fpstate")
    assert script.value == "fpstate.command.start:start"
    spec = importlib.util.find_spec("fpstate.__main__")
    assert spec is not None
    assert "from fpstate.command.start import start" in Path(str(spec.origin)).read_text()


def test_nothing_of_ours_is_imported_before_them():
    """What comes before an interrupt is met by Python itself."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, fpstate.command.start; print(*sorted(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = [name for name in done.stdout.split() if name.split(".")[0] == "fpstate"]
    assert ours == ["fpstate", "fpstate.command", "fpstate.command.start"]
