"""What one vCPU has room for: its components, MSRs and buffer, as the kernel under it says.

Sources: KVM API 4.20 (KVM_GET_CPUID2), 4.134 (KVM_GET_XSAVE2), KVM_X86_XCOMP_GUEST_SUPP; ``guest_supported_xcr0``
in ``arch/x86/kvm/cpuid.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final, Protocol

from fpstate.arch.component import (
    LEGACY,
    SUPERVISOR_SUPPORTED,
    USER_DYNAMIC,
    Component,
    mask_of,
    xcr0_complete,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.engine.kvm.cpuid import leaf
from fpstate.errors import UnsupportedHere
from fpstate.image.consumer import Target

XSS: Final = 0xDA0
XFD: Final = 0x1C4
XFD_ERR: Final = 0x1C5
SUPERVISOR_MSRS: Final[Mapping[str, int]] = MappingProxyType(
    {"u_cet": 0x6A0, "pl3_ssp": 0x6A7, "pl0_ssp": 0x6A4, "pl1_ssp": 0x6A5, "pl2_ssp": 0x6A6}
)
"""Registers of supervisor components, which KVM_GET_XSAVE leaves out, by the MSR that has each (SDM Vol. 4)."""
STATE_MSRS: Final[Mapping[str, int]] = MappingProxyType(
    {"xss": XSS, "xfd": XFD, "xfd_err": XFD_ERR, **SUPERVISOR_MSRS}
)
"""Every MSR that belongs to a state, by name."""
CARRIED_BY_MSRS: Final = mask_of(Component.CET_U, Component.CET_S)
_LEAF: Final = 0xD


class StateVcpu(Protocol):
    """What loading, saving and resetting need of a vCPU; ``KvmVcpu`` has it."""

    xsave_size: int

    def cpuid(self) -> bytearray:
        """Return struct kvm_cpuid2 as the guest sees it."""

    def set_cpuid(self, cpuid: bytearray) -> None:
        """Set what the guest sees."""

    def xsave(self) -> bytearray:
        """Return ``xsave_size`` bytes of KVM_GET_XSAVE2."""

    def set_xsave(self, data: bytearray) -> None:
        """Do KVM_SET_XSAVE."""

    def xcr0(self) -> int:
        """Return XCR0."""

    def set_xcr0(self, value: int) -> None:
        """Set XCR0."""

    def msrs(self, numbers: Iterable[int]) -> dict[int, int]:
        """Return the values of these MSRs up to the first that KVM does not have."""

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """Set MSRs, and return how many were."""


def check_room(layout: Layout, size: int) -> None:
    """Raise UnsupportedHere where ``size`` bytes of KVM_GET_XSAVE2 do not hold a whole state."""
    if layout.size > size:
        raise UnsupportedHere(
            f"KVM_CAP_XSAVE2: KVM gives {size} bytes of a state, and one has {layout.size} here"
        )


@dataclass(frozen=True)
class Destination:
    """One vCPU as a state sees it. Masks are component bitmaps.

    ``cpu`` is the host: KVM's images have its offsets. ``kvm_xcr0`` is what KVM takes from this process,
    ``guest_xcr0`` and ``guest_xss`` what the guest's CPUID has of it; ``xsave_size`` the bytes of its buffer.
    ``msrs`` are those of ``STATE_MSRS`` that KVM has.
    """

    cpu: Cpu
    kvm_xcr0: int
    guest_xcr0: int
    guest_xss: int = 0
    xsave_size: int = 4096
    msrs: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        vcpu: StateVcpu,
        *,
        cpu: Cpu | None = None,
        supported_xcr0: int | None = None,
        cpuid: bytearray | None = None,
    ) -> Destination:
        """Ask a vCPU. ``supported_xcr0`` is what KVM tells of itself, if it does; else Linux's rules say it.

        ``cpuid`` (struct kvm_cpuid2) is what the vCPU will be told, where that is not what it was told already.
        """
        cpu = Cpu.host() if cpu is None else cpu
        table = vcpu.cpuid() if cpuid is None else cpuid
        main, extended = leaf(table, _LEAF, 0), leaf(table, _LEAF, 1)
        guest = main[0] | main[3] << 32
        known = Target.from_cpu(cpu, permitted=guest & USER_DYNAMIC).kvm_xcr0
        kvm = known if supported_xcr0 is None else supported_xcr0 & known
        xss = (extended[2] | extended[3] << 32) & SUPERVISOR_SUPPORTED
        msrs = tuple(name for name, number in STATE_MSRS.items() if number in vcpu.msrs([number]))
        return cls(cpu, kvm, guest & kvm, xss, vcpu.xsave_size, msrs)

    def check_whole(self) -> None:
        """Raise UnsupportedHere where KVM would cut this vCPU's states short."""
        check_room(self.layout, self.xsave_size)

    @cached_property
    def layout(self) -> Layout:
        """The standard layout of KVM's images here."""
        return Layout.standard(self.cpu, self.kvm_xcr0 | LEGACY)

    @property
    def full_xcr0(self) -> int:
        """The largest XCR0 that this guest can have: CPUID may list a part of AVX-512, MPX or AMX alone."""
        return xcr0_complete(self.guest_xcr0 | LEGACY)

    @property
    def xfd_capable(self) -> int:
        """The components that IA32_XFD can hold back in this guest."""
        return self.guest_xcr0 & USER_DYNAMIC if self.cpu.has("XFD") else 0

    def target(self, xfd: int = 0) -> Target:
        """Return what the rules need to foretell KVM_SET_XSAVE."""
        return Target.from_cpu(self.cpu, permitted=self.kvm_xcr0 & USER_DYNAMIC).with_(
            kvm_xcr0=self.kvm_xcr0, guest_xcr0=self.guest_xcr0, guest_xfd=xfd
        )
