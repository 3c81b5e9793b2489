"""The states of gdb's inferior, not as gdb decodes them but as the kernel wrote them.

For a core that is its notes. For a live process, which gdb itself traces, it is PTRACE_GETREGSET NT_X86_XSTATE: gdb's
Python runs on the thread that traces, so it may ask too. Where neither can be had (gdbserver), gdb alone knows.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gdb

from fpstate.arch import Cpu, Layout
from fpstate.errors import FpStateError, SourceError, UnsupportedHere
from fpstate.image import Image
from fpstate.source.inference import infer
from fpstate.source.open import open_source
from fpstate.source.thread import ThreadState

_GETREGSET: Final = 0x4204
_NT_X86_XSTATE: Final = 0x202
_XCR0: Final = slice(464, 472)
_CAPACITY: Final = 1 << 14
_CORE_LINE: Final = re.compile(r"core dump file:\s*[`'](.+?)', file type")


@dataclass(frozen=True, slots=True)
class States:
    """The threads that gdb knows, in its order, and ``origin``: where their states come from."""

    origin: str
    threads: tuple[ThreadState, ...]

    def of(self, lwp: int) -> ThreadState:
        """Return one thread's state; raises SourceError where the source has none."""
        for thread in self.threads:
            if thread.tid == lwp:
                return thread
        raise SourceError(self.origin, f"it has no state of thread {lwp}")


def states(lwps: list[int], cpu: Cpu | None = None) -> States:
    """Return the states of these threads; ``cpu`` is the processor that wrote a core which does not say its layout.

    Raises SourceError for threads that run, UnsupportedHere for what is neither a core nor traced by this gdb.
    """
    connection = gdb.selected_inferior().connection
    kind = connection.type if connection else "none"
    if kind == "core":
        path = core_path()
        found = {thread.tid: thread for thread in open_source(Path(path), cpu=cpu)}
        return States(f"the notes of {path}", tuple(found[lwp] for lwp in lwps if lwp in found))
    if kind == "native":
        return States("the kernel, by ptrace (NT_X86_XSTATE)", tuple(map(_live, lwps)))
    raise UnsupportedHere(
        f"the state of a target that gdb reaches as {kind!r}: the raw bytes cannot be had",
        help="debug it on its own machine, or write a core and load that",
    )


def core_path() -> str:
    """Return the path of the core that gdb has loaded."""
    found = _CORE_LINE.search(gdb.execute("info target", to_string=True))
    if found is None:
        raise SourceError("gdb", "it does not say which core it has loaded")
    return os.path.abspath(found[1])


def _live(lwp: int) -> ThreadState:
    regset = _regset(lwp)
    xcr0 = int.from_bytes(regset[_XCR0], "little")
    layout, source = _layout(xcr0, len(regset))
    return ThreadState(lwp, Image(regset, layout, source), xcr0=xcr0, name=_name(lwp))


def _regset(lwp: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    buffer = ctypes.create_string_buffer(_CAPACITY)
    io = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), _CAPACITY)
    if libc.ptrace(_GETREGSET, lwp, _NT_X86_XSTATE, ctypes.addressof(io)):
        problem = os.strerror(ctypes.get_errno())
        raise SourceError(f"thread {lwp}", f"PTRACE_GETREGSET: {problem}", help="it has to be stopped in gdb")
    return buffer.raw[: io[1] or 0]


def _layout(xcr0: int, size: int) -> tuple[Layout, str]:
    """Ask this processor, where gdb's Python finds the native core; else what is known of processors."""
    try:
        layout = Layout.standard(Cpu.host(), xcr0)
        if layout.size == size:
            return layout, "host"
    except FpStateError:
        pass
    return infer(xcr0, size), "inferred"


def _name(lwp: int) -> str:
    try:
        with open(f"/proc/{lwp}/comm", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
