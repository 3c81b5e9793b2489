"""Code that is stopped whenever it has looked at one place of memory: then somebody else changes what lies there.

A child runs it under ptrace with a data breakpoint (debug registers 0 and 7; SDM Vol. 3, 18.2), which traps after the
access. So the change comes between two accesses, at the same one each time, whatever the load of the machine.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TRACEME, POKEUSER, CONTINUE, KILL = 0, 6, 7, 8
DEBUG_REGISTERS: Final = 848
"""Where ``struct user`` has u_debugreg on x86-64 (linux/arch/x86/include/asm/user_64.h)."""
READ_OR_WRITE, EIGHT_BYTES, FIRST_LOCAL = 3 << 16, 2 << 18, 1
SECONDS: Final = 20

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long


class MissingError(Exception):
    """What this machine lacks."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended: by ``signal``, or saying something. ``looks`` at the place came before that."""

    signal: int
    said: str
    looks: int


def _call(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _ptrace(request, pid, address, data) == -1:
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.EIO, errno.ENOSYS, errno.EINVAL, errno.ENOSPC):
            raise MissingError(f"data breakpoints by ptrace ({errno.errorcode[number]})")
        raise OSError(number, os.strerror(number))


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def run(child: Callable[[], str], address: int, after_look: Callable[[int], None]) -> Outcome:
    """Run ``child`` in a process of its own, which shares mappings; ``after_look`` is told the number of each look at
    the eight bytes at ``address``, before the child goes on.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_watched(child, writer)
    os.close(writer)
    try:
        ended, looks = _watch(pid, address, after_look)
        said = os.read(reader, 4096).decode()
    finally:
        os.close(reader)
    return Outcome(os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0, said, looks)


def _be_watched(child: Callable[[], str], writer: int) -> None:
    faulthandler.disable()  # a child that is killed is what a test looks for
    try:
        _ptrace(TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.write(writer, child().encode())
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode()[:4096])
    finally:
        os._exit(0)


def _watch(pid: int, address: int, after_look: Callable[[int], None]) -> tuple[int, int]:
    """Return the wait status in the end, and the number of looks."""
    status, looks, pending = _wait(pid), 0, 0
    try:
        _call(POKEUSER, pid, DEBUG_REGISTERS, address)
        _call(POKEUSER, pid, DEBUG_REGISTERS + 7 * 8, READ_OR_WRITE | EIGHT_BYTES | FIRST_LOCAL)
        while os.WIFSTOPPED(status):
            _call(CONTINUE, pid, data=pending)
            status, pending = _wait(pid), 0
            if os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP:
                looks += 1
                after_look(looks)
            elif os.WIFSTOPPED(status):
                pending = os.WSTOPSIG(status)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return status, looks


def _wait(pid: int) -> int:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.0002)
    raise TimeoutError(f"the watched child did not stop in {SECONDS} s")
