"""What the running kernel permits this process, asking it for more, and the signal frame it asks room for.

Sources: ``fpu_xstate_prctl`` in ``arch/x86/kernel/fpu/xstate.c``, ``Documentation/arch/x86/xstate.rst``, and
``AT_MINSIGSTKSZ`` in ``arch/x86/include/uapi/asm/auxvec.h``.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import component_name, components_in
from fpstate.errors import (
    FpStateError,
    PermissionDenied,
    PermissionFrozen,
    StackTooSmall,
    UnknownComponent,
    UnsupportedComponent,
    UnsupportedHere,
)
from fpstate.vso.permission import Kind

_SYS_ARCH_PRCTL: Final = 158
_AT_MINSIGSTKSZ: Final = 51
_ARCH_SHSTK_STATUS: Final = 0x5005
_LONG: Final = ctypes.c_long
_OPERATIONS: Final = {"supported": 0x1021, "host": 0x1022, "guest": 0x1024}
_REQUESTS: Final = {Kind.HOST: 0x1023, Kind.GUEST: 0x1025}
"""ARCH_REQ_XCOMP_PERM (Linux 5.16) and ARCH_REQ_XCOMP_GUEST_PERM (5.17)."""


@dataclass(frozen=True, slots=True)
class KernelPermission:
    """Component bitmaps from ``arch_prctl``, each None where this kernel does not know the question.

    ``supported``: what exists (ARCH_GET_XCOMP_SUPP, Linux 5.16); ``host`` and ``guest``: what this process
    may use (ARCH_GET_XCOMP_PERM, 5.16; ARCH_GET_XCOMP_GUEST_PERM, 5.17); ``minsigstksz``: AT_MINSIGSTKSZ,
    in bytes (5.14).
    """

    supported: int | None
    host: int | None
    guest: int | None
    minsigstksz: int | None


def read_kernel_permission() -> KernelPermission:
    """Ask the kernel; raises UnsupportedHere elsewhere than in a 64-bit process on x86-64 Linux."""
    libc = _libc()
    answers = {name: _ask(libc, operation) for name, operation in _OPERATIONS.items()}
    return KernelPermission(**answers, minsigstksz=libc.getauxval(ctypes.c_ulong(_AT_MINSIGSTKSZ)) or None)


def request_from_kernel(mask: int, kind: Kind = Kind.HOST) -> None:
    """Ask for the dynamic components in ``mask``; granted for good, to the whole process.

    For guests (ARCH_REQ_XCOMP_GUEST_PERM) before the process makes its first vCPU. Raises as
    ``Permissions.request`` does: UnknownComponent (EINVAL, also from a kernel that does not know the request),
    UnsupportedComponent (EOPNOTSUPP), PermissionFrozen (EBUSY), StackTooSmall (ENOSPC), PermissionDenied (all else).
    """
    for component in components_in(mask):
        libc = _libc()
        if libc.syscall(_LONG(_SYS_ARCH_PRCTL), _LONG(_REQUESTS[kind]), _LONG(component)) != 0:
            raise _refusal(component, ctypes.get_errno())


def shadow_stack_active() -> bool:
    """Whether this thread runs under a user shadow stack (ARCH_SHSTK_STATUS, Linux 6.6)."""
    return bool((_ask(_libc(), _ARCH_SHSTK_STATUS) or 0) & 1)


def _refusal(component: int, number: int) -> FpStateError:
    name, what = component_name(component), f"{component_name(component)}: arch_prctl answers"
    if number == errno.EINVAL:
        return UnknownComponent(component, f"{what} EINVAL, it knows no such component")
    if number == errno.EOPNOTSUPP:
        return UnsupportedComponent(component, f"{what} EOPNOTSUPP, it cannot be asked for here")
    if number == errno.EBUSY:
        return PermissionFrozen(
            component,
            f"{what} EBUSY, a vCPU was made already in this process or its parent, which froze guest permission",
            help="ask for guest components before the first KVM_CREATE_VCPU, in a process that inherits none",
        )
    if number == errno.ENOSPC:
        return StackTooSmall(
            component,
            f"{what} ENOSPC, the alternate signal stack of some thread is too small for {name}",
            size=0,
            needed=_libc().getauxval(ctypes.c_ulong(_AT_MINSIGSTKSZ)),
            help="allocate at least AT_MINSIGSTKSZ bytes (getauxval(51)) for sigaltstack",
        )
    return PermissionDenied(component, f"{what} {errno.errorcode.get(number, number)}")


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux" or platform.machine() != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise UnsupportedHere("arch_prctl, which only 64-bit processes on x86-64 Linux have")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.getauxval.restype = ctypes.c_ulong
    return libc


def _ask(libc: ctypes.CDLL, operation: int) -> int | None:
    mask = ctypes.c_uint64()
    result = libc.syscall(ctypes.c_long(_SYS_ARCH_PRCTL), ctypes.c_long(operation), ctypes.byref(mask))
    if result == 0:
        return mask.value
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
        return None
    raise OSError(number, f"arch_prctl({operation:#x}) failed")
