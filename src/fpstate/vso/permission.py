"""Which components contexts may use, host and guest apart, and asking for more.

The rules are those of ``fpu_xstate_prctl`` in Linux ``arch/x86/kernel/fpu/xstate.c`` and of
``Documentation/arch/x86/xstate.rst``.
"""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterable
from typing import Final

from fpstate.arch.component import (
    GUEST_SUPERVISOR,
    USER_DYNAMIC,
    USER_SUPPORTED,
    component_name,
    components_in,
    mask_of,
    mask_text,
)
from fpstate.errors import (
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    PermissionDenied,
    PermissionFrozen,
    StackTooSmall,
    UnknownComponent,
    UnsupportedComponent,
)
from fpstate.vso.config import FpuConfig
from fpstate.vso.signal_frame import altstack_floor, minsigstksz

GUEST_LOCKED: Final = 1 << 63
"""In a guest permission: frozen by the first guest (``FPU_GUEST_PERM_LOCKED``)."""
MINSIGSTKSZ: Final = 2048
"""No alternate signal stack is smaller (``sigaltstack(2)``)."""
REQUEST_LIMIT: Final = 20
"""Component numbers from here on are unknown to ``arch_prctl`` (``XFEATURE_MAX``, Linux 6.16)."""


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


class AltstackRefused(StackTooSmall):
    """sigaltstack(2) refuses a stack that has no room for a frame with what the process is permitted (ENOMEM)."""

    errno_name = "ENOMEM"


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

    def inherited(self, altstack: int = 0) -> Permissions:
        """Return what a forked process starts with: the same, the guest's lock included (``fpu_inherit_perms``).

        ``altstack`` is the alternate signal stack of the thread that forks, which is a copy in the child.
        """
        child = Permissions(
            self.config, policy=self.policy, altstacks=[altstack] if altstack else (), ia32=self.ia32
        )
        child._masks = dict(self._masks)
        return child

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

    def set_altstack(self, size: int, earlier: int = 0) -> None:
        """Put a thread's alternate signal stack in the place of its earlier one, as sigaltstack(2) does; 0 is none.

        Raises AltstackRefused for less than MINSIGSTKSZ, and once the process is permitted dynamic components for what
        is not larger than the frame (``sigaltstack_size_valid``); the earlier one then stays.
        """
        permitted = self._masks[Kind.HOST] & USER_DYNAMIC
        needed = MINSIGSTKSZ
        if permitted:
            frame = altstack_floor(self.config.user_max.size, self.user_size(Kind.HOST), self.ia32)
            needed = max(needed, frame + 1)
        if size and size < needed:
            raise AltstackRefused(
                max(components_in(permitted), default=0),
                f"a signal stack of {size} bytes, and {needed} are needed for {mask_text(self.user_mask(Kind.HOST))}",
                size=size,
                needed=needed,
                help="allocate at least AT_MINSIGSTKSZ bytes (getauxval(51)) for sigaltstack",
            )
        if earlier:
            self.altstacks.remove(earlier)
        if size:
            self.altstacks.append(size)

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
