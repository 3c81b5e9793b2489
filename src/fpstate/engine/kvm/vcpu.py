"""A virtual machine and its vCPUs as KVM has them: file descriptors, and one method for each ioctl."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
from collections.abc import Iterable, Mapping
from types import TracebackType

from fpstate.engine.kvm.abi import (
    CAPABILITIES,
    CPUID_ENTRY,
    CPUID_HEADER,
    DEBUGREGS_SIZE,
    ENABLE_CAP,
    EVENTS_SIZE,
    EXIT_INTR,
    EXIT_IO,
    FPU_SIZE,
    IOCTLS,
    MEMORY_REGION,
    MSR_ENTRY,
    MSRS_HEADER,
    REGS_SIZE,
    RUN_EXIT_REASON,
    RUN_IMMEDIATE_EXIT,
    SREGS_SIZE,
    XCR_ENTRY,
    XCRS_HEADER,
    XCRS_SIZE,
)
from fpstate.engine.kvm.device import Device, ioctl
from fpstate.errors import KvmError, UnsupportedHere

_RUN, _SET_XSAVE = IOCTLS["KVM_RUN"], IOCTLS["KVM_SET_XSAVE"]
_NO_VIRTUALIZATION = frozenset((errno.EBUSY, errno.EIO, errno.ENODEV, errno.EOPNOTSUPP, errno.EPERM))
"""What KVM_CREATE_VM answers where virtualization is in other hands, disabled or forbidden."""
_CPUID_ENTRIES = 256
"""The most that a vCPU has (KVM_MAX_CPUID_ENTRIES)."""


class Machine:
    """A virtual machine: memory slots and vCPUs. Closing it closes its vCPUs; close it before its device.

    Raises UnsupportedHere where the processor's virtualization is off or in other hands, KvmError for all else.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.vcpus: list[KvmVcpu] = []
        self._numbers = itertools.count()
        self.file = -1
        self.file = _create(device)
        os.set_inheritable(self.file, False)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(self, slot: int, guest_address: int, address: int, size: int, flags: int = 0) -> None:
        """Let guest-physical memory be memory of this process, which must outlive the machine; size 0 unmaps it."""
        region = MEMORY_REGION.pack(slot, flags, guest_address, size, address)
        ioctl(self.file, "KVM_SET_USER_MEMORY_REGION", bytearray(region))

    def enable(self, capability: str) -> bool:
        """KVM_ENABLE_CAP with the argument 1; whether KVM has this capability."""
        known = self.device.capability(capability) > 0
        if known:
            argument = ENABLE_CAP.pack(CAPABILITIES[capability], 0, 1)
            ioctl(self.file, "KVM_ENABLE_CAP", bytearray(argument))
        return known

    def allow_mmu_pages(self, count: int) -> None:
        """KVM_SET_NR_MMU_PAGES: how many pages of its own KVM may keep for the guests' address spaces."""
        ioctl(self.file, "KVM_SET_NR_MMU_PAGES", count)

    def vcpu(self, *, cpuid: bytearray | None = None) -> KvmVcpu:
        """Add a vCPU that sees ``cpuid`` (struct kvm_cpuid2), or without any all that KVM supports."""
        vcpu = KvmVcpu(self, next(self._numbers))
        self.vcpus.append(vcpu)
        vcpu.set_cpuid(self.device.supported_cpuid() if cpuid is None else cpuid)
        return vcpu

    def close(self) -> None:
        """Close all files and mappings; may be called again."""
        for vcpu in self.vcpus:
            vcpu.close()
        if self.file >= 0:
            file, self.file = self.file, -1
            os.close(file)


class KvmVcpu:
    """One vCPU; made by ``Machine.vcpu``. Buffers are ``bytearray`` and of the ioctl's exact size.

    All methods raise KvmError with ioctl and errno. ``xsave_size`` is what KVM_CAP_XSAVE2 told when it was made.
    """

    def __init__(self, machine: Machine, number: int) -> None:
        device = machine.device
        self.machine = machine
        self.file = -1
        self.state: mmap.mmap | None = None
        self.has_xsave2 = device.capability("KVM_CAP_XSAVE2") > 0
        self._get_xsave = IOCTLS["KVM_GET_XSAVE2" if self.has_xsave2 else "KVM_GET_XSAVE"]
        self.xsave_size = device.xsave_size
        self._open = False
        self.file = ioctl(machine.file, "KVM_CREATE_VCPU", number)
        try:
            os.set_inheritable(self.file, False)
            self.state = self._map(ioctl(device.file, "KVM_GET_VCPU_MMAP_SIZE"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close file and mapping; may be called again."""
        state, self.state = self.state, None
        if state:
            state.close()
        if self.file >= 0:
            file, self.file = self.file, -1
            os.close(file)

    def run(self) -> int:
        """Enter the guest; returns KVM_EXIT_*, and EXIT_INTR where a signal or immediate_exit kept it out."""
        self._open = True
        try:
            fcntl.ioctl(self.file, _RUN)
        except InterruptedError:
            return EXIT_INTR  # where immediate_exit is set the kernel leaves exit_reason as it was
        except OSError as error:
            raise KvmError("KVM_RUN", error.errno or 0) from error
        reason = self.exit_reason
        self._open = reason == EXIT_IO
        return reason

    def complete(self) -> None:
        """Let KVM finish what an exit left open, a port write: until then rip is the instruction's (struct kvm_run)."""
        if not self._open:
            return
        self.immediate_exit = True
        try:
            self.run()
        finally:
            self.immediate_exit = False
        self._open = (
            False  # last: who is interrupted here does it again, and no run is left with immediate_exit
        )

    @property
    def shared(self) -> mmap.mmap:
        """struct kvm_run and what lies behind it."""
        assert self.state is not None, "this vCPU was closed"
        return self.state

    @property
    def exit_reason(self) -> int:
        """KVM_EXIT_* of the last run."""
        return int.from_bytes(self.shared[RUN_EXIT_REASON : RUN_EXIT_REASON + 4], "little")

    @property
    def immediate_exit(self) -> bool:
        """Whether KVM_RUN finishes what is pending and returns without entering the guest."""
        return bool(self.shared[RUN_IMMEDIATE_EXIT])

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self.shared[RUN_IMMEDIATE_EXIT] = int(value)

    def set_cpuid(self, cpuid: bytearray) -> None:
        """KVM_SET_CPUID2 with a struct kvm_cpuid2."""
        ioctl(self.file, "KVM_SET_CPUID2", cpuid)

    def cpuid(self) -> bytearray:
        """KVM_GET_CPUID2: struct kvm_cpuid2 as the guest sees it, KVM's own changes to it included."""
        table = bytearray(CPUID_HEADER.pack(_CPUID_ENTRIES, 0)) + bytes(CPUID_ENTRY.size * _CPUID_ENTRIES)
        ioctl(self.file, "KVM_GET_CPUID2", table)
        found, _ = CPUID_HEADER.unpack_from(table)
        return table[: CPUID_HEADER.size + CPUID_ENTRY.size * found]

    def xsave(self, buffer: bytearray | None = None) -> bytearray:
        """KVM_GET_XSAVE2, or KVM_GET_XSAVE where there is no other: the standard-format image.

        ``buffer`` has ``xsave_size`` bytes and is overwritten; KVM may write fewer (api.rst 4.134).
        """
        data = bytearray(self.xsave_size) if buffer is None else buffer
        if len(data) != self.xsave_size:
            self._check_size(data, self.xsave_size)
        try:
            fcntl.ioctl(self.file, self._get_xsave, data)
        except OSError as error:
            raise KvmError(
                "KVM_GET_XSAVE2" if self.has_xsave2 else "KVM_GET_XSAVE", error.errno or 0
            ) from error
        return data

    def set_xsave(self, data: bytearray) -> None:
        """KVM_SET_XSAVE. ``data`` has at least ``xsave_size`` bytes: KVM reads as many as the vCPU's state has."""
        if len(data) < self.xsave_size:
            self._check_size(data, self.xsave_size)
        try:
            fcntl.ioctl(self.file, _SET_XSAVE, data)
        except OSError as error:
            raise KvmError("KVM_SET_XSAVE", error.errno or 0) from error

    def xcr0(self) -> int:
        """KVM_GET_XCRS: XCR0."""
        data = bytearray(XCRS_SIZE)
        ioctl(self.file, "KVM_GET_XCRS", data)
        count, _ = XCRS_HEADER.unpack_from(data)
        for index in range(count):
            number, _, value = XCR_ENTRY.unpack_from(data, XCRS_HEADER.size + index * XCR_ENTRY.size)
            if number == 0:
                return int(value)
        return 0

    def set_xcr0(self, value: int) -> None:
        """KVM_SET_XCRS with XCR0."""
        data = bytearray(XCRS_SIZE)
        XCRS_HEADER.pack_into(data, 0, 1, 0)
        XCR_ENTRY.pack_into(data, XCRS_HEADER.size, 0, 0, value)
        ioctl(self.file, "KVM_SET_XCRS", data)

    def msrs(self, numbers: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: the values up to the first MSR that KVM does not have."""
        wanted = list(numbers)
        data = _msr_table(dict.fromkeys(wanted, 0))
        found = ioctl(self.file, "KVM_GET_MSRS", data)
        entries = MSR_ENTRY.iter_unpack(data[MSRS_HEADER.size :])
        return {number: value for (number, _, value), _ in zip(entries, range(found), strict=False)}

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """KVM_SET_MSRS; returns how many were set: KVM stops at the first that it refuses."""
        return ioctl(self.file, "KVM_SET_MSRS", _msr_table(values))

    def regs(self) -> bytearray:
        """KVM_GET_REGS: struct kvm_regs, see abi.REGS."""
        return self._get("KVM_GET_REGS", REGS_SIZE)

    def set_regs(self, data: bytearray) -> None:
        """KVM_SET_REGS."""
        self._set("KVM_SET_REGS", data, REGS_SIZE)

    def sregs(self) -> bytearray:
        """KVM_GET_SREGS: struct kvm_sregs."""
        return self._get("KVM_GET_SREGS", SREGS_SIZE)

    def set_sregs(self, data: bytearray) -> None:
        """KVM_SET_SREGS."""
        self._set("KVM_SET_SREGS", data, SREGS_SIZE)

    def fpu(self) -> bytearray:
        """KVM_GET_FPU: struct kvm_fpu, whose mxcsr the kernel leaves 0."""
        return self._get("KVM_GET_FPU", FPU_SIZE)

    def set_fpu(self, data: bytearray) -> None:
        """KVM_SET_FPU: takes no MXCSR and does not set XSTATE_BV, so that what was initial stays so."""
        self._set("KVM_SET_FPU", data, FPU_SIZE)

    def events(self) -> bytearray:
        """KVM_GET_VCPU_EVENTS: struct kvm_vcpu_events."""
        return self._get("KVM_GET_VCPU_EVENTS", EVENTS_SIZE)

    def set_events(self, data: bytearray) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self._set("KVM_SET_VCPU_EVENTS", data, EVENTS_SIZE)

    def debugregs(self) -> bytearray:
        """KVM_GET_DEBUGREGS: struct kvm_debugregs (DR0 to DR3, DR6, DR7)."""
        return self._get("KVM_GET_DEBUGREGS", DEBUGREGS_SIZE)

    def set_debugregs(self, data: bytearray) -> None:
        """KVM_SET_DEBUGREGS."""
        self._set("KVM_SET_DEBUGREGS", data, DEBUGREGS_SIZE)

    def set_signal_mask(self, blocked: Iterable[int]) -> None:
        """KVM_SET_SIGNAL_MASK: which signals are blocked while KVM_RUN runs, in place of the thread's own mask."""
        mask = sum(1 << (number - 1) for number in blocked)
        ioctl(
            self.file,
            "KVM_SET_SIGNAL_MASK",
            bytearray((8).to_bytes(4, "little") + mask.to_bytes(8, "little")),
        )

    def _map(self, size: int) -> mmap.mmap:
        try:
            return mmap.mmap(self.file, size)
        except OSError as error:
            raise KvmError("mmap of struct kvm_run", error.errno or 0) from error

    def _get(self, name: str, size: int) -> bytearray:
        data = bytearray(size)
        ioctl(self.file, name, data)
        return data

    def _set(self, name: str, data: bytearray, size: int) -> None:
        self._check_size(data, size)
        ioctl(self.file, name, data)

    def _check_size(self, data: bytearray, size: int) -> None:
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes given, {size} needed")


def _create(device: Device) -> int:
    try:
        return ioctl(device.file, "KVM_CREATE_VM")
    except KvmError as error:
        if error.errno not in _NO_VIRTUALIZATION:
            raise
        raise UnsupportedHere(
            f"a virtual machine: {error}",
            help="see the kernel's log; another hypervisor may hold the processor",
        ) from error


def _msr_table(values: Mapping[int, int]) -> bytearray:
    table = bytearray(MSRS_HEADER.pack(len(values), 0))
    for number, value in values.items():
        table += MSR_ENTRY.pack(number, 0, value)
    return table
