"""A process that saves states is killed at any moment: every file is a whole state, the old one or the new one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import state_writer
from live_processes import wait_until

from fpstate.errors import SourceError
from fpstate.source.state_file import encode, read_state, state_files

KILLS = 1000 if os.environ.get("FPSTATE_LONG") == "1" else 100
LONGEST = 0.05


def killed_at_random(folder: Path, kills: int, *options: str) -> list[str]:
    """Let a process save states, kill it, look at the folder, and so on; returns what was wrong with files."""
    source, problems = random.Random(kills), []
    writer = Path(state_writer.__file__)
    with subprocess.Popen(
        [sys.executable, writer, folder, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for number in range(kills):
            print("write", file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            time.sleep(source.random() * LONGEST)
            os.kill(child, signal.SIGKILL)
            _wait_until_gone(child)
            problems += [f"kill {number}: {problem}" for problem in damaged(folder)]
        parent.stdin.close()
    return problems


def damaged(folder: Path) -> list[str]:
    """What is wrong with the states in a folder; each must be one of those that the writer knows."""
    problems = []
    for path in state_files(folder):
        try:
            saved = read_state(path)
        except SourceError as error:
            problems.append(str(error))
            continue
        assert saved.checkpoint is not None
        if encode(saved) != encode(state_writer.version(saved.checkpoint.seed)):
            problems.append(f"{path}: neither the old state nor the new one")
    return problems


def _wait_until_gone(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), lambda: "a killed process does not end")


def test_whoever_is_killed_leaves_whole_states(tmp_path):
    assert killed_at_random(tmp_path, KILLS) == []
    assert len(state_files(tmp_path)) == state_writer.NAMES
    assert all(read_state(path) for path in tmp_path.glob(".*"))


def test_a_writer_that_writes_in_place_is_caught(tmp_path):
    assert killed_at_random(tmp_path, 100, "in-place")
