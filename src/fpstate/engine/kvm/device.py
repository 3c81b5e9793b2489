"""/dev/kvm, opened and asked what it can do; every failing ioctl is told by name."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
from types import TracebackType

from fpstate.engine.kvm.abi import (
    API_VERSION,
    CAPABILITIES,
    CPUID_ENTRY,
    CPUID_HEADER,
    DEVICE_ATTRIBUTE,
    IOCTLS,
    XCOMP_GUEST_SUPP,
    XSAVE_SIZE,
)
from fpstate.errors import KvmError, UnsupportedHere, VsoError

PATH = "/dev/kvm"
NEEDED = ("KVM_CAP_USER_MEMORY", "KVM_CAP_EXT_CPUID", "KVM_CAP_XSAVE", "KVM_CAP_XCRS", "KVM_CAP_VCPU_EVENTS",
          "KVM_CAP_DEBUGREGS", "KVM_CAP_IMMEDIATE_EXIT")  # fmt: skip
_MOST_CPUID_ENTRIES = 4096


def ioctl(file: int, name: str, argument: int | bytearray = 0) -> int:
    """Do an ioctl, in place where it has a buffer. Raises KvmError with its name and errno, VsoError once closed."""
    if file < 0:
        raise VsoError(f"{name}: this was closed", help="open another one")
    try:
        return fcntl.ioctl(file, IOCTLS[name], argument)
    except InterruptedError:
        return _without_signals(file, name, argument)
    except OSError as error:
        raise KvmError(name, error.errno or 0) from error


def _without_signals(file: int, name: str, argument: int | bytearray) -> int:
    """Do an ioctl again that a signal cut short, as KVM_CREATE_VM can be (``mm_take_all_locks``).

    A program's timer may be quicker than the ioctl, and would cut it short for ever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return fcntl.ioctl(file, IOCTLS[name], argument)
    except OSError as error:
        raise KvmError(name, error.errno or 0) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Device:
    """An open /dev/kvm.

    Raises UnsupportedHere where it is absent, may not be opened, or is too old; close it, or use it in a ``with``.
    """

    def __init__(self, path: str = PATH) -> None:
        self.path = path
        self.file = -1
        self.file = _open(path)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; may be called again."""
        if self.file >= 0:
            file, self.file = self.file, -1
            os.close(file)

    def capability(self, name: str) -> int:
        """Return what KVM_CHECK_EXTENSION answers: 0 where KVM does not know it."""
        return ioctl(self.file, "KVM_CHECK_EXTENSION", CAPABILITIES[name])

    @property
    def xsave_size(self) -> int:
        """Bytes to have ready for KVM_GET_XSAVE2 and KVM_SET_XSAVE: never less than struct kvm_xsave.

        Depends on the guest permission of this process (api.rst 4.134); 0 from old kernels means 4096.
        """
        return max(XSAVE_SIZE, self.capability("KVM_CAP_XSAVE2"))

    @property
    def supported_xcr0(self) -> int | None:
        """The XCR0 that guests may have, permission included; None where KVM cannot tell (before Linux 5.17)."""
        if not self.capability("KVM_CAP_SYS_ATTRIBUTES"):
            return None
        value = ctypes.c_uint64()
        argument = bytearray(DEVICE_ATTRIBUTE.pack(0, 0, XCOMP_GUEST_SUPP, ctypes.addressof(value)))
        try:
            ioctl(self.file, "KVM_GET_DEVICE_ATTR", argument)
        except KvmError as error:
            if error.errno in (errno.ENXIO, errno.ENOTTY):
                return None
            raise
        return value.value

    def supported_cpuid(self) -> bytearray:
        """Return struct kvm_cpuid2 as KVM_GET_SUPPORTED_CPUID answers it, ready for KVM_SET_CPUID2."""
        count = 128
        while True:
            table = bytearray(CPUID_HEADER.pack(count, 0)) + bytes(CPUID_ENTRY.size * count)
            try:
                ioctl(self.file, "KVM_GET_SUPPORTED_CPUID", table)
            except KvmError as error:
                count *= 2
                if error.errno != errno.E2BIG or count > _MOST_CPUID_ENTRIES:
                    raise
                continue
            found, _ = CPUID_HEADER.unpack_from(table)
            return table[: CPUID_HEADER.size + CPUID_ENTRY.size * found]

    def _check(self) -> None:
        try:
            version = ioctl(self.file, "KVM_GET_API_VERSION")
        except KvmError as error:
            raise UnsupportedHere(f"{self.path} is not KVM: {error}") from error
        if version != API_VERSION:
            raise UnsupportedHere(f"KVM's API version is {version}, not {API_VERSION}")
        for name in NEEDED:
            if not self.capability(name):
                raise UnsupportedHere(f"{name}, which this KVM is too old for")


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnsupportedHere(
            f"{path} does not exist", help="load kvm_intel or kvm_amd; in a container, pass the device in"
        ) from error
    except PermissionError as error:
        raise UnsupportedHere(
            f"{path} may not be opened ({errno.errorcode[error.errno or errno.EACCES]})",
            help="join the group kvm, or run as root",
        ) from error
    except OSError as error:
        raise UnsupportedHere(f"{path} cannot be opened: {error.strerror}") from error
