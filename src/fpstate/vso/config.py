"""What Linux derives from a processor at boot: which components contexts have, and the sizes that follow.

The derivation is that of ``fpu__init_system_xstate`` and ``init_xstate_size`` in ``arch/x86/kernel/fpu/xstate.c``.
Supervisor components for guests alone are as in Linux 6.17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fpstate.arch.component import (
    AMX,
    COMPONENTS,
    GUEST_SUPERVISOR,
    INDEPENDENT,
    LEGACY,
    MPX,
    SUPERVISOR_SUPPORTED,
    USER_DYNAMIC,
    USER_SUPPORTED,
    Component,
    components_in,
    mask_of,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import CpuidError


@dataclass(frozen=True, slots=True)
class StateConfig:
    """A set of components and the bytes of an image that holds them all."""

    features: int
    size: int


@dataclass(frozen=True)
class FpuConfig:
    """What Linux derives at boot from one processor.

    Kernel sizes are of in-kernel images: compacted where XSAVEC or XSAVES exists, else standard; they include
    supervisor components. User sizes are of standard-format images, as in signal frames, ptrace and KVM.
    ``init_xfd`` is what IA32_XFD starts with; ``independent_features`` live in buffers of their own.
    """

    cpu: Cpu
    compacted: bool
    kernel_max: StateConfig
    kernel_default: StateConfig
    user_max: StateConfig
    user_default: StateConfig
    guest_default: StateConfig
    legacy_features: int
    independent_features: int
    init_xfd: int

    @classmethod
    def from_cpu(cls, cpu: Cpu, *, guest_supervisor: bool = True, out_of_tree: int = 0) -> Self:
        """Derive the configuration; without ``guest_supervisor`` as Linux up to 6.16 did, which has no CET_S.

        ``out_of_tree``: supervisor components that a patched kernel keeps too, such as UINTR, which Linux does not.
        Where the processor's ``enabled_xcr0`` is known, user components that it leaves off are left out. Without XFD
        there is no AMX (``cpuid_deps``): XSETBV would refuse TILECFG alone.
        Raises CpuidError where Linux would turn XSAVE off: APX and MPX both enumerated, or no x87 and SSE.
        """
        apx = mask_of(Component.APX)
        if cpu.xcr0 & MPX and cpu.xcr0 & apx:
            raise CpuidError(f"{cpu.name} enumerates both APX and MPX, which lie at the same place")
        if cpu.has("XSAVE") and cpu.user_mask & LEGACY != LEGACY:
            raise CpuidError(
                f"{cpu.name} lacks {mask_text(LEGACY & ~cpu.user_mask)}, without which XSAVE is off"
            )
        supervisor = SUPERVISOR_SUPPORTED if guest_supervisor else SUPERVISOR_SUPPORTED & ~GUEST_SUPERVISOR
        supervisor |= out_of_tree & ~USER_SUPPORTED
        enabled = USER_SUPPORTED if cpu.enabled_xcr0 is None else USER_SUPPORTED & cpu.enabled_xcr0
        features = cpu.user_mask & enabled | cpu.supervisor_mask & supervisor
        if not cpu.has("XFD"):
            features &= ~AMX
        legacy = mask_of(*(number for number in components_in(LEGACY) if cpu.has(COMPONENTS[number].feature)))
        features |= legacy
        user = features & USER_SUPPORTED
        compacted = cpu.has("XSAVEC") or cpu.has("XSAVES")

        def kernel_config(mask: int) -> StateConfig:
            return StateConfig(mask, _kernel_layout(cpu, compacted, mask).size)

        def user_config(mask: int) -> StateConfig:
            return StateConfig(mask, Layout.standard(cpu, mask).size)

        return cls(
            cpu=cpu,
            compacted=compacted,
            kernel_max=kernel_config(features),
            kernel_default=kernel_config(features & ~(USER_DYNAMIC | GUEST_SUPERVISOR)),
            user_max=user_config(user),
            user_default=user_config(user & ~USER_DYNAMIC),
            guest_default=kernel_config(features & ~USER_DYNAMIC),
            legacy_features=legacy,
            independent_features=cpu.supervisor_mask & INDEPENDENT,
            init_xfd=user & USER_DYNAMIC,
        )

    @property
    def xcr0(self) -> int:
        """What the kernel writes to XCR0: dynamic components too, which XFD then holds back."""
        return self.user_max.features

    @property
    def xss(self) -> int:
        """What the kernel writes to IA32_XSS."""
        return self.kernel_max.features & ~USER_SUPPORTED | self.independent_features

    def kernel_layout(self, mask: int) -> Layout:
        """Return the layout of an in-kernel image of ``mask``; raises LayoutError for what it cannot hold."""
        return _kernel_layout(self.cpu, self.compacted, mask)

    def kernel_size(self, mask: int) -> int:
        """Return the bytes of an in-kernel image of ``mask``."""
        return self.kernel_layout(mask).size

    def user_size(self, mask: int) -> int:
        """Return the bytes of a standard-format image of the user components in ``mask``."""
        return Layout.standard(self.cpu, mask & USER_SUPPORTED).size


def _kernel_layout(cpu: Cpu, compacted: bool, mask: int) -> Layout:
    return Layout.compacted(cpu, mask) if compacted else Layout.standard(cpu, mask)
