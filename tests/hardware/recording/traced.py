"""The process of traced.c: its registers are set by ptrace, and then it shows what it runs with."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from fpstate.arch import Cpu

from .child import clean_environment, compile_freestanding
from .host import NONE, USED

CONT, KILL, SETFPREGS, SETOPTIONS, GETREGSET, SETREGSET = 7, 8, 15, 0x4200, 0x4204, 0x4205
EXITKILL = 1 << 20
NT_PRFPREG, NT_X86_XSTATE, NT_PRXFPREG = 2, 0x202, 0x46E62B7F
_ADDRESS = 0x2000_0000
"""Where the linker puts ``seen``."""
_REGISTERS = 64
_SIZE = 12288
_SECONDS = 60


class Seen(NamedTuple):
    """What the process has in its registers: XGETBV(1), PKRU, and a standard image with key 0 opened."""

    in_use: int
    pkru: int
    registers: bytes


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class TraceError(Exception):
    """The process cannot be traced here, or ended."""


def compile_traced(gcc: str, folder: Path, mode: int = 64) -> Path:
    """Compile traced.c for 64- or 32-bit mode and return the program."""
    flags = [f"-m{mode}", f"-Wl,-Tbss={_ADDRESS:#x}"]
    return compile_freestanding(gcc, folder, f"recording-traced-{mode}", ["traced.c"], *flags)


class Traced:
    """A stopped process; it must be used by the thread that made it. Raises TraceError."""

    def __init__(self, program: Path, cpu: Cpu, *, permission: int = NONE) -> None:
        words = "x" * cpu.has("XGETBV1") + "k" * cpu.has("OSPKE")
        words += "p" * (permission != NONE) + "u" * (permission == USED)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._libc.ptrace.restype = ctypes.c_long
        self._buffer = ctypes.create_string_buffer(2 * _SIZE)
        self._child = subprocess.Popen([program, words], env=clean_environment())
        try:
            self._wait()
            if error := self._ptrace(SETOPTIONS, 0, EXITKILL):
                raise TraceError(f"PTRACE_SETOPTIONS: {os.strerror(error)}")
            self._memory = os.open(f"/proc/{self._child.pid}/mem", os.O_RDONLY)
        except BaseException:
            self._child.kill()
            self._child.wait()
            raise

    def __enter__(self) -> Traced:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set(self, data: bytes | bytearray, note: int = NT_X86_XSTATE) -> int:
        """Set a regset and return errno."""
        vector = self._vector(data)
        return self._ptrace(SETREGSET, note, ctypes.addressof(vector))

    def set_fpregs(self, data: bytes | bytearray) -> int:
        """PTRACE_SETFPREGS with 512 bytes, and return errno."""
        vector = self._vector(bytes(data).ljust(512, b"\0"))
        return self._ptrace(SETFPREGS, 0, vector.base or 0)

    def get(self) -> bytes:
        """Return NT_X86_XSTATE."""
        vector = _Vector(ctypes.addressof(self._buffer), _SIZE)
        if error := self._ptrace(GETREGSET, NT_X86_XSTATE, ctypes.addressof(vector)):
            raise TraceError(f"PTRACE_GETREGSET: {os.strerror(error)}")
        return self._buffer[: vector.length]

    def run(self) -> Seen:
        """Let the process run to its next stop, and return the registers that it had on its way."""
        if error := self._ptrace(CONT, 0, 0):
            raise TraceError(f"PTRACE_CONT: {os.strerror(error)}")
        self._wait()
        data = os.pread(self._memory, _REGISTERS + _SIZE, _ADDRESS)
        words = [int.from_bytes(data[at : at + 4], "little") for at in (0, 4)]
        return Seen(words[0], words[1], data[_REGISTERS:])

    def close(self) -> None:
        """End the process."""
        os.close(self._memory)
        self._child.kill()
        self._child.wait(timeout=10)

    def _vector(self, data: bytes | bytearray) -> _Vector:
        self._buffer[: len(data)] = bytes(data)
        return _Vector(ctypes.addressof(self._buffer), len(data))

    def _wait(self) -> None:
        given_up = time.monotonic() + _SECONDS
        found, status = 0, 0
        while not found:
            found, status = os.waitpid(self._child.pid, os.WNOHANG)
            if time.monotonic() > given_up:
                raise TraceError(f"the traced process did not stop in {_SECONDS} seconds")
            os.sched_yield()
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
            self._child.returncode = self._child.returncode or -1
            raise TraceError(f"the traced process did not stop by INT3: status {status:#x}")

    def _ptrace(self, request: int, address: int, data: int) -> int:
        return ctypes.get_errno() if self._libc.ptrace(request, self._child.pid, address, data) < 0 else 0
