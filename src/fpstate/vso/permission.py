"""Which components contexts may use, host and guest apart, and the sizes that follow.

The derivation is that of Linux: ``fpu__init_system_xstate``, ``init_xstate_size`` and ``fpu_xstate_prctl`` in
``arch/x86/kernel/fpu/xstate.c``, ``get_sigframe_size`` in ``arch/x86/kernel/signal.c``, and
``Documentation/arch/x86/xstate.rst``. Supervisor components for guests alone are as in Linux 6.17.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from fpstate.arch.component import (
    COMPONENTS,
    GUEST_SUPERVISOR,
    INDEPENDENT,
    LEGACY,
    MPX,
    SUPERVISOR_SUPPORTED,
    USER_DYNAMIC,
    USER_SUPPORTED,
    Component,
    component_name,
    components_in,
    mask_of,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import (
    CpuidError,
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    PermissionDenied,
    PermissionFrozen,
    StackTooSmall,
    UnknownComponent,
    UnsupportedComponent,
)

GUEST_LOCKED: Final = 1 << 63
"""In a guest permission: frozen by the first guest (``FPU_GUEST_PERM_LOCKED``)."""
REQUEST_LIMIT: Final = 20
"""Component numbers from here on are unknown to ``arch_prctl`` (``XFEATURE_MAX``, Linux 6.16)."""

_RT_SIGFRAME = 440
_SIGFRAME_IA32 = 736
_FREGS_STATE = 112
_MAGIC2 = 4
_XSAVE_PADDING = 63
_FRAME_PADDING = 15
_FRAME_ALIGNMENT = 16


def sigframe_size(user_size: int, ia32: bool = True) -> int:
    """Return the most bytes that a signal frame takes with ``user_size`` bytes of standard-format state.

    ``ia32``: the kernel also runs 32-bit programs, whose frame is the larger one.
    Source: ``init_sigframe_size`` and ``fpu__get_fpstate_size``; not yet rounded to 16.
    """
    frame, legacy = (_SIGFRAME_IA32, _FREGS_STATE) if ia32 else (_RT_SIGFRAME, 0)
    return frame + _FRAME_PADDING + user_size + _MAGIC2 + legacy + _XSAVE_PADDING


def minsigstksz(user_max_size: int, ia32: bool = True) -> int:
    """Return AT_MINSIGSTKSZ in bytes for the largest standard-format state, dynamic components included."""
    return -(-sigframe_size(user_max_size, ia32) // _FRAME_ALIGNMENT) * _FRAME_ALIGNMENT


def check_host_features(mask: int) -> None:
    """Refuse supervisor components that are kept for guests alone, such as CET_S, in a host context.

    Emits GuestOnlyComponentWarning, then raises GuestOnlyComponent, also where warnings are errors.
    """
    for component in components_in(mask & GUEST_SUPERVISOR):
        message = (
            f"{component_name(component)} is kept for guests alone, and is in the mask of a host context"
        )
        refusal = GuestOnlyComponent(
            component, message, help="make the VSO a guest, or leave the component out"
        )
        try:
            warnings.warn(message, GuestOnlyComponentWarning, stacklevel=2)
        except GuestOnlyComponentWarning as warning:
            raise refusal from warning
        raise refusal


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
    def from_cpu(cls, cpu: Cpu, *, guest_supervisor: bool = True) -> Self:
        """Derive the configuration; without ``guest_supervisor`` as Linux up to 6.16 did, which has no CET_S.

        Where the processor's ``enabled_xcr0`` is known, user components that it leaves off are left out.
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
        enabled = USER_SUPPORTED if cpu.enabled_xcr0 is None else USER_SUPPORTED & cpu.enabled_xcr0
        features = cpu.user_mask & enabled | cpu.supervisor_mask & supervisor
        if not cpu.has("XFD"):
            features &= ~USER_DYNAMIC
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
        return self.kernel_max.features & SUPERVISOR_SUPPORTED | self.independent_features

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


class Kind(enum.Enum):
    """Whose state a permission is about."""

    HOST = "host"
    GUEST = "guest"


class Permissions:
    """What the contexts of one process may use: a host mask and a guest mask, which only ever grow.

    ``policy`` bounds both: components outside it are neither there by default nor granted on request, so
    that contexts can be held to fewer components than the processor has. ``altstacks`` are the sizes in bytes
    of the alternate signal stacks that are in use.
    """

    def __init__(
        self,
        config: FpuConfig,
        *,
        policy: int | None = None,
        altstacks: Iterable[int] = (),
        ia32: bool = True,
    ) -> None:
        self.config = config
        self.policy = config.kernel_max.features if policy is None else policy
        self.altstacks = list(altstacks)
        self.ia32 = ia32
        self._masks = {
            Kind.HOST: config.kernel_default.features & self.policy,
            Kind.GUEST: config.guest_default.features & self.policy,
        }

    @property
    def guest_frozen(self) -> bool:
        """Whether guest permission can no longer grow."""
        return bool(self._masks[Kind.GUEST] & GUEST_LOCKED)

    def mask(self, kind: Kind) -> int:
        """Return the permitted components, supervisor ones included, without the lock flag."""
        return self._masks[kind] & ~GUEST_LOCKED

    def user_mask(self, kind: Kind) -> int:
        """Return what ARCH_GET_XCOMP_PERM and ARCH_GET_XCOMP_GUEST_PERM report: user components alone."""
        return self._masks[kind] & USER_SUPPORTED

    def kernel_size(self, kind: Kind) -> int:
        """Return the bytes of an in-kernel image of everything that is permitted."""
        return self.config.kernel_size(self.mask(kind))

    def user_size(self, kind: Kind) -> int:
        """Return the bytes of a standard-format image of everything that is permitted."""
        return self.config.user_size(self.mask(kind))

    def freeze_guest(self) -> None:
        """Fix guest permission; Linux does so when a process makes its first vCPU."""
        self._masks[Kind.GUEST] |= GUEST_LOCKED

    def request(self, component: int, kind: Kind = Kind.HOST) -> None:
        """Ask for a dynamic component, as ARCH_REQ_XCOMP_PERM and ARCH_REQ_XCOMP_GUEST_PERM do.

        What is permitted already is granted again, frozen or not. Raises, in this order: UnknownComponent,
        UnsupportedComponent (not dynamic, or not on this processor), PermissionDenied (outside the policy),
        PermissionFrozen (guest, after ``freeze_guest``), StackTooSmall (host; carries both sizes).
        """
        name, bit = component_name(component), mask_of(component) if 0 <= component < REQUEST_LIMIT else 0
        if not bit:
            raise UnknownComponent(component, f"no component has the number {component}")
        if not bit & USER_DYNAMIC & self.config.user_max.features:
            why = (
                "is no dynamic component"
                if not bit & USER_DYNAMIC
                else f"does not exist on {self.config.cpu.name}"
            )
            raise UnsupportedComponent(component, f"{name} cannot be asked for: it {why}")
        if self._masks[kind] & bit:
            return
        if not bit & self.policy:
            raise PermissionDenied(
                component, f"{name} is outside the policy, which is {mask_text(self.policy)}"
            )
        if kind is Kind.GUEST and self.guest_frozen:
            raise PermissionFrozen(
                component,
                f"{name} cannot be granted: guest permission froze with the first guest",
                help="ask for guest components before the first guest VSO is made",
            )
        if kind is Kind.HOST:
            self._check_altstacks(component, self._masks[kind] | bit)
        self._masks[kind] |= bit

    def altstack_needed(self, mask: int) -> int:
        """Return the bytes that alternate signal stacks need in contexts with the components in ``mask``."""
        largest = self.config.user_max.size
        return minsigstksz(largest, self.ia32) - largest + self.config.user_size(mask)

    def _check_altstacks(self, component: int, mask: int) -> None:
        needed = self.altstack_needed(mask)
        smallest = min((size for size in self.altstacks if size), default=needed)
        if smallest < needed:
            raise StackTooSmall(
                component,
                f"{component_name(component)} needs signal stacks of {needed} bytes, one has {smallest}",
                size=smallest,
                needed=needed,
                help="allocate at least AT_MINSIGSTKSZ bytes (getauxval(51)) for sigaltstack",
            )
