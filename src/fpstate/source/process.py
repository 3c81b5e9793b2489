"""The threads of a live process: stopped together, read, and let go."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fpstate.errors import SourceError, UnsupportedHere
from fpstate.image import Image
from fpstate.source import ptrace
from fpstate.source.thread import Machine, ThreadState

_IDENT: Final = struct.Struct("<4s B 11x H H")  # e_ident with its class, e_type, e_machine
_MACHINES: Final[dict[tuple[int, int], Machine]] = {(1, 3): "i386", (1, 62): "x32", (2, 62): "x86-64"}
"""By ELF class and e_machine (EM_386, EM_X86_64)."""


@dataclass(frozen=True, slots=True)
class UnreadThread:
    """A thread that yielded no state; ``reason`` says why, ``error`` is the errno."""

    tid: int
    name: str
    error: int
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All threads of a process at one moment.

    They stood still together: ``stop`` is the seconds from the first request to stop to the last release,
    ``longest`` the longest that one of them stood. Threads that ended meanwhile are in neither list.
    """

    pid: int
    machine: Machine
    threads: tuple[ThreadState, ...]
    unread: tuple[UnreadThread, ...]
    stop: float
    longest: float


def process_threads(pid: int, *, limit: float = ptrace.LIMIT) -> list[ThreadState]:
    """Return the state of every thread of a live process, in the kernel's order: the first one leads.

    ``limit`` is in seconds. Raises SourceError where there is no such process and where a thread cannot be read,
    UnsupportedHere where tracing is forbidden; ``snapshot`` returns what could be read all the same.
    """
    found = snapshot(pid, limit=limit)
    if found.unread:
        first, more = found.unread[0], len(found.unread) - 1
        others = f" (and {more} more)" if more else ""
        raise SourceError(
            f"process {pid}",
            f"thread {first.tid}{others}: {first.reason}",
            help="fpstate threads shows the other threads",
        )
    return list(found.threads)


def snapshot(pid: int, *, limit: float = ptrace.LIMIT) -> Snapshot:
    """Stop all threads of a live process, read their states, and let them go, within ``limit`` seconds.

    Nothing stays stopped or traced whatever happens here; what was stopped by a signal before stays so, and a
    signal that arrives meanwhile is delivered. A thread whose system call was interrupted goes on with it as
    after SIGCONT (signal(7)). Raises as ``process_threads`` does, but not for single threads.
    """
    layout = ptrace.host_layout()
    outcomes, stop, longest = ptrace.snapshot(pid, layout, limit)
    machine = machine_of(pid)
    for each in outcomes:
        if each.regset is not None:
            layout = ptrace.checked_layout(pid, each.regset, layout)
            break
    threads = tuple(
        ThreadState(
            tid=each.tid,
            image=Image(each.regset, layout, "host"),
            machine=machine,
            xcr0=ptrace.xcr0_of(each.regset) or None,
            name=each.name,
        )
        for each in outcomes
        if each.regset is not None
    )
    unread = tuple(_unread(each) for each in outcomes if each.regset is None)
    if not threads:
        raise ptrace.refusal(pid, unread[0].error if unread else errno.ESRCH)
    return Snapshot(pid, machine, threads, unread, stop, longest)


def machine_of(pid: int) -> Machine:
    """Return what a process runs as, by the ELF class and machine of its program; x86-64 where it hides that."""
    try:
        with Path(f"/proc/{pid}/exe").open("rb") as file:
            magic, elf_class, _, machine = _IDENT.unpack(file.read(_IDENT.size))
    except (OSError, struct.error):
        return "x86-64"
    return _MACHINES.get((elf_class, machine), "x86-64") if magic == b"\x7fELF" else "x86-64"


def thread_ids(pid: int) -> tuple[int, ...]:
    """Return the threads of a process as they are now; empty where there is none."""
    try:
        return tuple(sorted(int(name) for name in os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return ()


def _unread(outcome: ptrace.Outcome) -> UnreadThread:
    problem = ptrace.refusal(outcome.tid, outcome.error)
    reason = problem.missing if isinstance(problem, UnsupportedHere) else str(problem)
    return UnreadThread(
        outcome.tid, outcome.name, outcome.error, reason.removeprefix(f"process {outcome.tid}: ")
    )
