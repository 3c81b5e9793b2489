"""A vCPU's state as KVM keeps it on processors that are not here: a model of the ioctls, written from their source.

``fpu_copy_uabi_to_guest_fpstate``, ``copy_uabi_to_xstate`` and ``__copy_xstate_to_uabi_buf`` of Linux 6.18.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY, SUPERVISOR_SUPPORTED, USER_DYNAMIC, components_in
from fpstate.engine.kvm.abi import CPUID_ENTRY, CPUID_HEADER, DEBUGREGS_SIZE, EVENTS_SIZE, REGS_SIZE
from fpstate.errors import KvmError
from fpstate.image import Image
from fpstate.image.initial import initial_bytes

PKRU = mask_of(Component.PKRU)
MXCSR = slice(24, 28)
XSS, XFD, XFD_ERR = 0xDA0, 0x1C4, 0x1C5
CET_MSRS = (0x6A0, 0x6A4, 0x6A5, 0x6A6, 0x6A7)


class ModelledVcpu:
    """One vCPU on ``cpu`` that has the user components ``xcr0`` and the supervisor components ``xss``.

    ``calls`` are the ioctls that changed something, in order. ``drops`` are components that SET_XSAVE forgets, as
    a kernel with a fault would; ``fails`` names an ioctl that fails once.
    """

    def __init__(self, cpu: Cpu, *, xcr0: int | None = None, xss: int = 0, size: int | None = None) -> None:
        self.cpu = cpu
        self.supported = cpu.user_mask if xcr0 is None else xcr0
        self.supported_xss = xss
        self.layout = Layout.standard(cpu, self.supported | LEGACY)
        self.xsave_size = max(4096, self.layout.size) if size is None else size
        self.calls: list[str] = []
        self.drops = 0
        self.fails = ""
        self._xcr0 = 1
        self._msrs = {XFD: 0, XFD_ERR: 0} if self.supported & USER_DYNAMIC else {}
        self._msrs |= dict.fromkeys((XSS, *CET_MSRS), 0) if xss else {}
        self._image = Image.initial(self.layout)
        self._pkru = 0
        self._regs, self._debugregs = bytearray(REGS_SIZE), bytearray(DEBUGREGS_SIZE)
        self._events = bytearray(EVENTS_SIZE)

    def cpuid(self) -> bytearray:
        low, high = self.supported & 0xFFFF_FFFF, self.supported >> 32
        entries = (
            (0xD, 0, 1, low, 0, 0, high),
            (0xD, 1, 1, 0xF, 0, self.supported_xss & SUPERVISOR_SUPPORTED, 0),
        )
        return bytearray(CPUID_HEADER.pack(2, 0) + b"".join(CPUID_ENTRY.pack(*each) for each in entries))

    def set_cpuid(self, cpuid: bytearray) -> None:
        self._call("KVM_SET_CPUID2")

    def xcr0(self) -> int:
        return self._xcr0

    def set_xcr0(self, value: int) -> None:
        self._call("KVM_SET_XCRS", not value & 1 or bool(value & ~(self.supported | 1)))
        self._xcr0 = value

    def msrs(self, numbers: Iterable[int]) -> dict[int, int]:
        return {number: self._msrs[number] for number in numbers if number in self._msrs}

    def set_msrs(self, values: Mapping[int, int]) -> int:
        for number, value in values.items():
            allowed = {
                XSS: self.supported_xss,
                XFD: self._xcr0 & USER_DYNAMIC,
                XFD_ERR: self._xcr0 & USER_DYNAMIC,
            }
            if number not in self._msrs or value & ~allowed.get(number, (1 << 64) - 1):
                return 0
            self._call(f"MSR {number:#x}")
            self._msrs[number] = value
            if number == XFD:
                self._clear(value)
        return len(values)

    def xsave(self) -> bytearray:
        """Everything that is present at its place, all else zeros; the host's mask in the software bytes."""
        out = bytearray(self.xsave_size)
        present = self._image.xstate_bv
        data = bytearray(self._image.to_bytes())
        if present & PKRU:
            at = self.layout.offset(Component.PKRU)
            data[at : at + 4] = self._pkru.to_bytes(4, "little")
        out[: len(data)] = data
        out[464:472] = self.cpu.user_mask.to_bytes(8, "little")
        return out

    def set_xsave(self, data: bytearray) -> None:
        xstate_bv, xcomp_bv = (int.from_bytes(data[at : at + 8], "little") for at in (512, 520))
        mxcsr = int.from_bytes(data[MXCSR], "little")
        wrong = bool(xstate_bv & ~self.supported & ~LEGACY) or xcomp_bv != 0 or any(data[528:576])
        wrong |= bool(xstate_bv & 7 and mxcsr & ~self.cpu.mxcsr_mask) or len(data) < self.xsave_size
        self._call("KVM_SET_XSAVE", wrong)
        xstate_bv &= ~self._msrs.get(XFD, 0) & ~self.drops
        image = Image(bytearray(data[: self.layout.size]), self.layout)
        image.store.view[512:520] = xstate_bv.to_bytes(8, "little")
        if not xstate_bv & 2:  # the compacted form that the kernel keeps has MXCSR with SSE alone
            image.store.view[MXCSR] = (0x1F80).to_bytes(4, "little")
        for number in components_in(self.layout.mask & ~xstate_bv):
            place = self.layout.place(number)
            if number > 1:
                image.store.view[place.offset : place.end] = initial_bytes(number, 0, place.size)
        if xstate_bv & PKRU:
            self._pkru = image.registers["pkru"]
        elif self._pkru:  # absent, and so kept
            image.registers["pkru"] = self._pkru
        self._image = image

    def regs(self) -> bytearray:
        return bytearray(self._regs)

    def set_regs(self, data: bytearray) -> None:
        self._regs = bytearray(data)

    def debugregs(self) -> bytearray:
        return bytearray(self._debugregs)

    def set_debugregs(self, data: bytearray) -> None:
        self._debugregs = bytearray(data)

    def events(self) -> bytearray:
        return bytearray(self._events)

    def set_events(self, data: bytearray) -> None:
        self._events = bytearray(data)

    def _clear(self, mask: int) -> None:
        kept = self._image.xstate_bv & ~mask
        self._image.store.view[512:520] = kept.to_bytes(8, "little")

    def _call(self, name: str, wrong: bool = False) -> None:
        if wrong or name == self.fails:
            self.fails = ""
            raise KvmError(name, errno.EINVAL)
        self.calls.append(name)
