"""How many instructions of the native core a piece of Python runs, counted by single steps: the same on every run.

It needs no performance counters, which virtual machines often lack, and no emulator that would have to know AVX-512.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

import pytest

import fpstate._core

TRACEME, PEEKUSER, KILL, SINGLESTEP = 0, 3, 8, 9
RIP_AT = 16 * 8
"""In ``struct user_regs_struct``."""
MOST_STEPS = 500_000
PROLOGUE = """
import ctypes, os, signal
def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
ctypes.CDLL(None).ptrace(0, 0, None, None)
"""


class Steps:
    """A child that runs a script, which stops itself by ``stop()`` around what is counted."""

    def __init__(self, script: str) -> None:
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._ptrace.restype = ctypes.c_long
        self._child = subprocess.Popen([sys.executable, "-c", PROLOGUE + script])
        if self._wait() != signal.SIGSTOP:
            self.close()
            pytest.skip("PTRACE_TRACEME, to count instructions by single steps")
        self._core = self._range()

    def _wait(self) -> int:
        """Return the signal that stopped the child; 0: it ended."""
        _, status = os.waitpid(self._child.pid, 0)
        return os.WSTOPSIG(status) if os.WIFSTOPPED(status) else 0

    def _range(self) -> range:
        """Where the core's code lies in the child."""
        with open(f"/proc/{self._child.pid}/maps") as maps:
            for line in maps:
                where, rights, *_ = line.split()
                if "x" in rights and line.rstrip().endswith(os.path.basename(fpstate._core.__file__)):
                    start, end = (int(part, 16) for part in where.split("-"))
                    return range(start, end)
        raise AssertionError("the child has not loaded the core")

    def count(self) -> int:
        """Return how many of the core's instructions run until the child's next stop."""
        counted = 0
        for _ in range(MOST_STEPS):
            address = self._ptrace(PEEKUSER, self._child.pid, RIP_AT, None)
            if self._ptrace(SINGLESTEP, self._child.pid, None, None):
                raise AssertionError("PTRACE_SINGLESTEP failed")
            stopped_by = self._wait()
            if stopped_by != signal.SIGTRAP:
                assert stopped_by == signal.SIGSTOP, f"the child ended, or was stopped by {stopped_by}"
                return counted
            counted += address in self._core
        raise AssertionError(f"no stop within {MOST_STEPS} instructions")

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.wait()


def instructions(setup: str, work: str, few: int = 2, many: int = 12) -> float:
    """Return the core's instructions for each of ``work``'s ``n``: of ``many`` less those of ``few``."""
    script = (
        f"{setup}\ndef work(n):\n    {work}\nwork({few})\nstop()\nwork({few})\nstop()\nwork({many})\nstop()\n"
    )
    steps = Steps(script)
    try:
        first, second = steps.count(), steps.count()
    finally:
        steps.close()
    return (second - first) / (many - few)
