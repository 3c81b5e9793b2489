"""``fpstate run`` among terminals, pipes and interrupts."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_processes import wait_until

FPSTATE = [sys.executable, "-m", "fpstate"]
LONG = ["run", "--vcpus", "4", "--no-audit", "--timeout", "1000s", "faults/endless_loop", "spin"]
PATIENCE = 120

pytestmark = pytest.mark.usefixtures("native")


def environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")
    }
    return {**kept, "TERM": "xterm-256color", "COLUMNS": "100", **changes}


def on_a_terminal(*arguments: str, **changes: str) -> tuple[int, str]:
    """Run with all three streams on a terminal; exit code and what the terminal was sent."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*FPSTATE, *arguments], stdin=child, stdout=child, stderr=child, env=environment(**changes)
    )
    os.close(child)
    sent = read_until_closed(parent)
    os.close(parent)
    return process.wait(PATIENCE), sent.decode()


def read_until_closed(terminal: int) -> bytes:
    sent = b""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        sent += piece
    return sent


def text_of(sent: str) -> str:
    """What was sent, without its escape sequences."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", sent)


def colours(sent: str) -> list[str]:
    """The SGR sequences that choose a foreground or background colour."""
    return [
        code
        for code in re.findall(r"\x1b\[([\d;]*)m", sent)
        if any(re.fullmatch(r"[349]\d|10\d", part) for part in code.split(";"))
    ]


def test_a_terminal_sees_progress_and_then_the_summary():
    code, sent = on_a_terminal("run", "--vcpus", "200", "--no-audit", "canary", "spin")
    assert code == 0
    assert "vCPUs finished" in sent
    assert "\x1b[" in sent
    bar, summary = text_of(sent).split("200 vCPUs on 1 processor")
    assert "%" in bar
    assert "200 of 200" in summary
    assert "%" not in summary


def test_the_progress_bar_is_gone_and_the_cursor_back_at_the_end():
    _, sent = on_a_terminal("run", "--vcpus", "200", "--no-audit", "canary", "spin")
    assert sent.rfind("\x1b[?25h") > sent.rfind("\x1b[?25l")
    assert sent.rfind("\x1b[2K") > sent.rfind("vCPUs finished")
    assert sent.rfind("200 vCPUs on") > sent.rfind("\x1b[?25h")


def test_no_color_takes_the_colours_away():
    _, plain = on_a_terminal("run", "--vcpus", "200", "--no-audit", "canary", NO_COLOR="1")
    _, normal = on_a_terminal("run", "--vcpus", "200", "--no-audit", "canary")
    assert colours(normal)
    assert not colours(plain)


def test_a_dumb_terminal_gets_no_escape_codes():
    code, sent = on_a_terminal("run", "--vcpus", "20", "--no-audit", "canary", TERM="dumb")
    assert code == 0
    assert "\x1b" not in sent


def test_pipes_get_no_escape_codes_and_no_progress():
    result = subprocess.run(
        [*FPSTATE, "run", "--vcpus", "50", "--no-audit", "canary"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PATIENCE,
    )
    assert result.returncode == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout


def test_json_on_a_terminal_is_json():
    _, sent = on_a_terminal("run", "--vcpus", "20", "--no-audit", "--json", "canary")
    assert json.loads(sent)["finished"] == 20


@pytest.mark.parametrize("processors", ["1", "2"])
def test_an_interrupt_ends_a_long_run_soon(processors):
    if len(os.sched_getaffinity(0)) < int(processors):
        pytest.skip("a second processor")
    process = subprocess.Popen(
        [*FPSTATE, *LONG, "--processors", processors],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for_guests(process)
        before = processor_time_of_children()
        used = processor_time(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert processor_time_of_children() - before - used < 5  # of processor time; it takes 0.1 s
    assert process.returncode == 130
    assert (out, err) == ("", "")


def test_an_interrupt_on_a_terminal_takes_the_progress_bar_away():
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*FPSTATE, *LONG],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment(),
        start_new_session=True,
    )
    os.close(child)
    try:
        wait_for_guests(process)
        process.send_signal(signal.SIGINT)
        sent = read_until_closed(parent).decode()
        os.close(parent)
        ended = process.wait(PATIENCE)
    finally:
        process.kill()
    assert ended == 130
    assert "Traceback" not in sent
    assert sent.rfind("\x1b[?25h") > sent.rfind("\x1b[?25l") >= 0


def wait_for_guests(process: subprocess.Popen[str]) -> None:
    """Until guests run: then the core's handlers of faults are in place."""
    wait_until(lambda: process.poll() is not None or handles(process.pid, signal.SIGILL))
    assert process.poll() is None


def handles(pid: int, number: signal.Signals) -> bool:
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> number - 1 & 1)


def processor_time_of_children() -> float:
    """Seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor_time(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "arguments", [["cpu", "--cpu", "zen4"], ["run", "--vcpus", "3", "--no-audit", "spin"]]
)
def test_a_reader_that_goes_away_is_no_reason_for_noise(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*FPSTATE, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE
    )
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_full_disk_is_said_so():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*FPSTATE, "cpu", "--cpu", "zen4"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert result.returncode == 2
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
