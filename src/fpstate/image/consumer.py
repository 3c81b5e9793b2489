"""Who takes an image, and on what: the consumers, and the processor and kernel that a verdict is for.

Sources: SDM Vol. 1, 13.8 (XRSTOR), 13.12 (XRSTORS); Linux ``arch/x86/kernel/fpu/xstate.c`` and ``signal.c``;
KVM ``arch/x86/kvm/x86.c`` (``KVM_SUPPORTED_XCR0``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Self

from fpstate.arch.component import (
    AMX,
    COMPACTED_BIT,
    INDEPENDENT,
    LEGACY,
    SUPERVISOR_SUPPORTED,
    USER_DYNAMIC,
    USER_SUPPORTED,
    Component,
    mask_of,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import LayoutError

ALL: Final = (1 << 64) - 1
INIT_PKRU: Final = 0x55555554
"""PKRU of a new program under Linux, unless ``init_pkru=`` on its command line says otherwise."""
_KVM_XSAVE_SIZE: Final = 4096
_KVM_SUPPORTED: Final = USER_SUPPORTED & ~mask_of(Component.APX)
_MPX: Final = mask_of(Component.BNDREGS, Component.BNDCSR)


class Consumer(enum.Enum):
    """Whoever loads an image, each with conditions of its own.

    The first five take an XSAVE image as it stands, SIGRETURN32 one after 112 bytes in the form of FSAVE. The last
    four take older forms: FPREGS and PRXFPREG 512 bytes of FXSAVE, FSAVE the 108 bytes of 32-bit FSAVE, KVM_FPU
    the 416 of ``struct kvm_fpu``.
    """

    XRSTOR = "xrstor"
    XRSTORS = "xrstors"
    SIGRETURN = "sigreturn"
    PTRACE = "ptrace"
    KVM = "kvm"
    SIGRETURN32 = "sigreturn32"
    FPREGS = "fpregs"
    PRXFPREG = "prxfpreg"
    FSAVE = "fsave"
    KVM_FPU = "kvm-fpu"

    @property
    def title(self) -> str:
        """The consumer as its manual calls it."""
        return _TITLES[self]


_TITLES: Final = {
    Consumer.XRSTOR: "XRSTOR",
    Consumer.XRSTORS: "XRSTORS",
    Consumer.SIGRETURN: "rt_sigreturn",
    Consumer.PTRACE: "PTRACE_SETREGSET (NT_X86_XSTATE)",
    Consumer.KVM: "KVM_SET_XSAVE",
    Consumer.SIGRETURN32: "sigreturn of a 32-bit program",
    Consumer.FPREGS: "PTRACE_SETFPREGS, or NT_PRFPREG of a 64-bit program",
    Consumer.PRXFPREG: "NT_PRXFPREG of a 32-bit program",
    Consumer.FSAVE: "NT_PRFPREG of a 32-bit program",
    Consumer.KVM_FPU: "KVM_SET_FPU",
}

WHOLE_IMAGE: Final = (
    Consumer.XRSTOR,
    Consumer.XRSTORS,
    Consumer.SIGRETURN,
    Consumer.PTRACE,
    Consumer.KVM,
)
"""Those that take the bytes of an XSAVE image from their first one on."""
INSTRUCTIONS: Final = frozenset({Consumer.XRSTOR, Consumer.XRSTORS})
FRAMES: Final = frozenset({Consumer.SIGRETURN, Consumer.SIGRETURN32})
"""Those that take a signal frame's image."""
OLDER_FORMS: Final = frozenset({Consumer.FPREGS, Consumer.PRXFPREG, Consumer.FSAVE, Consumer.KVM_FPU})
"""Those from before XSAVE: they take x87, or x87 and SSE, without a header."""


@dataclass(frozen=True)
class Target:
    """A processor under Linux, and one task or guest on it. Masks are component bitmaps.

    ``xcr0`` and ``xss`` are what is enabled, ``user_xfeatures`` what the task's buffer has room for, ``xfd``
    what IA32_XFD holds back from it, ``requested`` the EDX:EAX of XRSTOR and XRSTORS. ``kvm_xcr0`` bounds
    what KVM takes, ``guest_xcr0`` is what the guest's CPUID has of it, ``guest_xfd`` the guest's IA32_XFD.
    ``compacted_restore``: the kernel restores its own images in the compacted format, as it does wherever
    XSAVEC is. ``magic2_at_user_size``: it looks for a frame's second magic behind the task's own user size,
    as Linux did from 6.15 until that was reverted, and not where the frame says.

    ``expandable``: what of ``xfd`` the task may have, and gets from Linux when it first needs it: the restore that
    raised #NM is repeated, and nobody sees a fault.

    What processors do differently:
    ``reads_absent``: a compacted restore reaches the last byte of what RFBM and XCOMP_BV have, present or not;
    ``header_first``: the header is judged before memory after it is found to be missing;
    ``partial_restore``: a compacted restore that is refused for MXCSR has loaded and initialised some components.
    Intel's were measured on Emerald Rapids, AMD's on Zen 4.
    """

    cpu: Cpu
    xcr0: int
    xss: int
    user_xfeatures: int
    xfd: int
    kvm_xcr0: int
    guest_xcr0: int
    guest_xfd: int = 0
    requested: int = ALL
    compacted_restore: bool = True
    magic2_at_user_size: bool = False
    expandable: int = 0
    reads_absent: bool = False
    header_first: bool = True
    partial_restore: bool = False

    @classmethod
    def from_cpu(cls, cpu: Cpu, *, permitted: int = 0, used: int = ALL) -> Self:
        """Return the target that Linux makes of a processor.

        ``permitted`` are the components that it gives on request only (TILEDATA) and that were requested, ``used``
        those of them that the task has used since, or that its process had used when it was made: until then its
        buffer has no room for them. Where ``enabled_xcr0`` is known, what it leaves off is off.
        """
        enabled = USER_SUPPORTED if cpu.enabled_xcr0 is None else cpu.enabled_xcr0
        xcr0 = cpu.user_mask & enabled | LEGACY
        if not cpu.has("XFD"):
            xcr0 &= ~AMX  # XSETBV takes TILECFG and TILEDATA together
        held_back = xcr0 & USER_DYNAMIC & ~(permitted & used)
        kvm = xcr0 & _KVM_SUPPORTED & ~(USER_DYNAMIC & ~permitted)
        if kvm & AMX != AMX:
            kvm &= ~AMX  # kvm_get_filtered_xcr0: TILECFG is not offered without TILEDATA
        if cpu.is_amd:
            kvm &= ~_MPX  # KVM runs on SVM there, which cannot give guests MPX (svm_hardware_setup)
        return cls(
            cpu=cpu,
            xcr0=xcr0,
            xss=cpu.supervisor_mask & (SUPERVISOR_SUPPORTED | INDEPENDENT),
            user_xfeatures=xcr0 & USER_SUPPORTED & ~held_back,
            xfd=held_back,
            kvm_xcr0=kvm,
            guest_xcr0=kvm,
            compacted_restore=cpu.has("XSAVEC"),
            expandable=held_back & permitted,
            reads_absent=not cpu.is_amd,
            header_first=cpu.is_amd,
            partial_restore=not cpu.is_amd,
        )

    def with_(self, **changes: int | bool) -> Self:
        """Return this target with some fields changed, such as ``requested`` or ``guest_xcr0``."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @cached_property
    def mxcsr_mask(self) -> int:
        """The bits that MXCSR has here; any other one is refused."""
        return self.cpu.mxcsr_mask

    @cached_property
    def compaction(self) -> bool:
        """Whether XRSTOR knows the compacted format (CPUID.(0DH,1):EAX[1])."""
        return self.cpu.has("XSAVEC")

    @cached_property
    def standard(self) -> Layout:
        """The standard layout of everything enabled: what ptrace, core files and XRSTOR use."""
        return Layout.standard(self.cpu, self.xcr0)

    @cached_property
    def user_size(self) -> int:
        """Bytes of a signal frame's XSAVE image, the second magic not counted (``fpstate->user_size``)."""
        return Layout.standard(self.cpu, self.user_xfeatures).size

    @cached_property
    def kvm_size(self) -> int:
        """Bytes that KVM_SET_XSAVE reads (``uabi_size``)."""
        return max(_KVM_XSAVE_SIZE, Layout.standard(self.cpu, self.kvm_xcr0).size)

    def compacted(self, xcomp_bv: int) -> Layout | None:
        """Return the layout that a header's XCOMP_BV states; None where CPUID does not know a component."""
        known: dict[int, Layout | None] = self._compacted_layouts
        if xcomp_bv not in known:
            try:
                known[xcomp_bv] = Layout.compacted(self.cpu, xcomp_bv & ~COMPACTED_BIT)
            except LayoutError:
                known[xcomp_bv] = None
        return known[xcomp_bv]

    @cached_property
    def _compacted_layouts(self) -> dict[int, Layout | None]:
        return {}
