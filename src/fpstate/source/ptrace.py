"""ptrace through the native core: raw regsets of threads, and refusals worded once.

NT_X86_XSTATE of ptrace(2) is an XSAVE image in the standard format; its size depends on the kernel's enabled
components alone, not on the thread (``fpu_user_cfg.max_size``). Bytes 464-471 hold those components.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from fpstate.arch import Cpu, Layout
from fpstate.errors import FpStateError, SourceError, UnsupportedHere
from fpstate.source.process_number import check_number

LIMIT: Final = 2.0
"""Seconds after which threads that have not stopped are given up."""
_XCR0: Final = slice(464, 472)
_SLACK: Final = 64
"""More bytes than the layout has, so that a regset larger than it is noticed and not cut off."""
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")


class Outcome(NamedTuple):
    """What became of one thread: its regset, or None and why not (an errno)."""

    tid: int
    regset: bytes | None
    error: int
    name: str


def snapshot(pid: int, layout: Layout, limit: float) -> tuple[list[Outcome], float, float]:
    """Return each thread's outcome, and the seconds of standing still: in all, and the longest of one thread.

    Raises SourceError where there is no such process, UnsupportedHere without the native core.
    """
    check_number(pid)
    core = _native_core()
    try:
        rows, stop_ns, longest_ns = core.ptrace_snapshot(pid, _capacity(layout), int(limit * 1e9))
    except OSError as error:
        raise refusal(pid, error.errno or 0) from error
    outcomes = [
        Outcome(tid, regset, error, name.decode(errors="replace")) for tid, regset, error, name in rows
    ]
    return outcomes, stop_ns / 1e9, longest_ns / 1e9


def edit(
    tid: int, layout: Layout, limit: float, change: Callable[[bytes], bytes | None]
) -> tuple[bytes, bytes | None, float]:
    """Let ``change`` make a new regset of a stopped thread's; return it before, as read back, and the seconds.

    What ``change`` raises is raised here, and nothing is written. Raises as ``snapshot`` does.
    """
    check_number(tid)
    core = _native_core()
    try:
        before, after, stop_ns = core.ptrace_edit(tid, _capacity(layout), int(limit * 1e9), change)
    except OSError as error:
        raise refusal(tid, error.errno or 0) from error
    return before, after, stop_ns / 1e9


@cache
def host_layout() -> Layout:
    """Return the layout of NT_X86_XSTATE on this kernel, as CPUID and XGETBV(0) have it.

    Raises UnsupportedHere where XSAVE is not enabled.
    """
    cpu = Cpu.host()
    if cpu.enabled_xcr0 is None:
        raise UnsupportedHere("XSAVE is not enabled by this kernel (CPUID.1:ECX[27], OSXSAVE)")
    return Layout.standard(cpu, cpu.enabled_xcr0 & cpu.user_mask)


def checked_layout(pid: int, regset: bytes, layout: Layout) -> Layout:
    """Return the layout that a regset has: this processor's, for the components that the kernel states in it.

    Raises SourceError where its size is another than those components need.
    """
    xcr0 = xcr0_of(regset)
    if xcr0 not in (0, layout.mask):
        layout = Layout.standard(Cpu.host(), xcr0)
    if len(regset) != layout.size:
        raise SourceError(
            f"process {pid}",
            f"the kernel's NT_X86_XSTATE has {len(regset)}{'+' if len(regset) > layout.size else ''} bytes,"
            f" this processor's layout of {layout.mask:#x} has {layout.size}",
            help="CPUID is not that of the kernel's processor: a hypervisor or an emulator changes leaf 0DH",
        )
    return layout


def xcr0_of(regset: bytes) -> int:
    """Return the components that the kernel has enabled, as it states them in the software bytes."""
    return int.from_bytes(regset[_XCR0], "little")


def refusal(pid: int, code: int) -> FpStateError:
    """Return the error for an errno of ptrace, saying what to try."""
    where = f"process {pid}"
    match code:
        case errno.ESRCH:
            return SourceError(where, "no such process, or it has ended", help="list processes with ps")
        case errno.ETIMEDOUT:
            return SourceError(
                where,
                "it did not stop in time: it waits in the kernel where nothing interrupts it (state D, or vfork)",
                help="try again later, or with a longer --limit",
            )
        case errno.EPERM | errno.EACCES:
            return _forbidden(pid)
        case errno.ENODEV:
            return UnsupportedHere("NT_X86_XSTATE: this kernel or processor has no XSAVE")
        case errno.EINVAL:
            return SourceError(
                where,
                "the kernel refuses this state (EINVAL), and left the old one in place",
                help="it refuses reserved MXCSR bits and components that the process has no permission for",
            )
    return SourceError(where, f"ptrace failed: {os.strerror(code)}")


def _forbidden(pid: int) -> UnsupportedHere:
    status = _status(pid)
    tracer = status.get("TracerPid", "0")
    if status.get("Tgid") == str(os.getpid()):
        return UnsupportedHere(
            f"process {pid} is this one, and no process can trace itself", help="ask from another process"
        )
    if tracer != "0":
        name = _status(int(tracer)).get("Name", "?")
        return UnsupportedHere(
            f"process {pid} is traced already, by {tracer} ({name})",
            help="detach that debugger first; inside gdb use the fpstate commands (fpstate gdb)",
        )
    if status and "VmSize" not in status and status.get("State", "")[:1] != "Z":
        return UnsupportedHere(f"process {pid} is a kernel thread, which has no user state")
    tries = ["run as root, or as the user of that process"]
    try:
        scope = int(_YAMA.read_text())
    except (OSError, ValueError):
        scope = 0
    if scope:
        tries.append(f"sysctl kernel.yama.ptrace_scope={scope} forbids it: 0 allows it to the same user")
    tries.append("in a container, add the capability SYS_PTRACE")
    return UnsupportedHere(f"no permission to trace process {pid} (EPERM)", help="; ".join(tries))


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _capacity(layout: Layout) -> int:
    return -(-layout.size // 8) * 8 + _SLACK


def _native_core() -> ModuleType:
    try:
        return importlib.import_module("fpstate._core")
    except ImportError as error:
        raise UnsupportedHere(f"the native core (fpstate._core) cannot be imported: {error}") from error
