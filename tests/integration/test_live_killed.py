"""Readers and writers of a live process, ended in the midst of tracing: the process is unharmed, to the register."""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from live_processes import FOLDER, assert_free, running

pytestmark = pytest.mark.usefixtures("core")

LONG = os.environ.get("FPSTATE_LONG") == "1"
THREADS = 24
LOOPS = {
    "reader": "from fpstate.source.process import snapshot\n"
    "import sys\n"
    "print('go', flush=True)\n"
    "while True:\n"
    "    snapshot(int(sys.argv[1]))\n",
    "writer": "from fpstate.source.rewrite import rewrite\n"
    "import itertools, sys\n"
    "print('go', flush=True)\n"
    "for value in itertools.cycle((0x1F80, 0x9F80)):\n"
    "    rewrite(int(sys.argv[1]), lambda registers: registers.__setitem__('mxcsr', value))\n",
}


@pytest.fixture(scope="module")
def keeper(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("live") / "keeper"
    subprocess.run([gcc, "-O2", "-pthread", "-o", target, FOLDER / "keeper.c"], check=True)
    return target


class Sender(threading.Thread):
    """Sends real-time signals, which queue, until it is told to end; counts those that were taken."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid, self.sent, self.over = pid, 0, threading.Event()

    def run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        while not self.over.wait(0.0007):
            self.sent += libc.sigqueue(self.pid, signal.SIGRTMIN, None) == 0


def results(process: subprocess.Popen[bytes]) -> tuple[int, int, int]:
    """End the keeper, and return the signals that it got, the rounds that were wrong, and all."""
    assert process.stdout is not None
    process.terminate()
    found = re.fullmatch(rb"got (\d+) bad (\d+) rounds (\d+)\n", process.stdout.readline())
    assert found is not None
    got, bad, rounds = map(int, found.groups())
    return got, bad, rounds


@pytest.mark.parametrize(
    ("how", "times"),
    [(signal.SIGKILL, 200 if LONG else 20), (signal.SIGINT, 100 if LONG else 10)],
    ids=["killed", "interrupted"],
)
def test_no_register_and_no_signal_is_lost_where_tracers_are_ended(keeper, how, times):
    chance = random.Random(5)
    with running(keeper, str(THREADS)) as process:
        sender = Sender(process.pid)
        sender.start()
        try:
            for number in range(times):
                tracer = subprocess.Popen(
                    [sys.executable, "-c", LOOPS[("reader", "writer")[number % 2]], str(process.pid)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                with tracer:
                    assert tracer.stdout is not None
                    assert tracer.stdout.readline() == b"go\n"
                    time.sleep(chance.uniform(0, 0.05))
                    tracer.send_signal(how)
                assert tracer.returncode != 0
                assert_free(process.pid)
        finally:
            sender.over.set()
            sender.join()
        got, bad, rounds = results(process)
    assert (bad, got) == (0, sender.sent)
    assert rounds > THREADS
    assert sender.sent > times


def test_a_register_that_a_tracer_changed_is_noticed(keeper):
    """The control."""
    from fpstate.source.process import thread_ids
    from fpstate.source.rewrite import rewrite

    with running(keeper, "3") as process:
        for tid in thread_ids(process.pid)[1:]:
            rewrite(tid, lambda registers: [registers.__setitem__(f"xmm{number}", 5) for number in (7, 9)])
            rewrite(tid, _change_high)
        _, bad, _ = results(process)
    assert bad > 0


def _change_high(registers) -> None:
    if "zmm17" in registers:
        registers["zmm17"] = 5
