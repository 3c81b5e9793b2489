"""What Linux keeps beside a context's registers: ``struct fpstate``, over a VSO that holds just what is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fpstate.arch.component import (
    GUEST_SUPERVISOR,
    INDEPENDENT,
    USER_SUPPORTED,
    Component,
    component_name,
    components_in,
    mask_of,
    mask_text,
)
from fpstate.arch.layout import Format
from fpstate.errors import PermissionDenied, VsoError
from fpstate.image import Image
from fpstate.image.control import MXCSR_INIT
from fpstate.image.subject import MXCSR_AT
from fpstate.vso.permission import check_host_features
from fpstate.vso.placement import copier

if TYPE_CHECKING:
    from fpstate.vso.live_registers import LiveRegisters
    from fpstate.vso.manager import Manager
    from fpstate.vso.vso import Vso

PKRU: Final = mask_of(Component.PKRU)
"""Switched on its own, from a software copy, and never part of a buffer here (Linux: ``XFEATURE_MASK_USER_RESTORE``
leaves it out of restores, and exports take it from the copy)."""
_SSE: Final = mask_of(Component.SSE)


class Fpstate:
    """A VSO with XFD and the flags of ``struct fpstate`` (``arch/x86/include/asm/fpu/types.h``).

    ``loaded_on``: the processor whose registers are this state now; None where the buffer has it
    (``TIF_NEED_FPU_LOAD``). ``in_use``: a guest state that a task has swapped in. ``confidential``: the registers
    are the firmware's to save and restore; the buffer has nothing of them.
    """

    __slots__ = ("confidential", "in_use", "loaded_on", "manager", "vso", "xfd")

    def __init__(self, manager: Manager, vso: Vso, xfd: int = 0, *, confidential: bool = False) -> None:
        self.manager = manager
        self.vso = vso
        self.xfd = xfd
        self.confidential = confidential
        self.in_use = False
        self.loaded_on: LiveRegisters | None = None

    @property
    def xfeatures(self) -> int:
        """The components that it may hold: what Linux's buffer has room for, whether in use or not."""
        return self.vso.permitted

    @property
    def user_xfeatures(self) -> int:
        """The user components among them."""
        return self.xfeatures & USER_SUPPORTED

    @property
    def size(self) -> int:
        """Bytes of Linux's buffer for ``xfeatures``; ``vso.size`` is what is held here."""
        return self.manager.config.kernel_size(self.xfeatures)

    @property
    def user_size(self) -> int:
        """Bytes of the same in the standard format, without supervisor components."""
        return self.manager.config.user_size(self.xfeatures)

    def save(self, processor: LiveRegisters) -> None:
        """Save the registers, which stay live (``save_fpregs_to_fpstate``); of a confidential state nothing.

        Raises PermissionDenied, or for guest-only components in a host GuestOnlyComponent with its warning, where
        components are in use that this state may not hold; the buffer then keeps what it had.
        """
        if self.confidential:
            return
        self.check_in_use(processor.in_use)
        image = processor.save(self.xfeatures & ~PKRU)
        self.manager.store(self.vso, stated_components(image), image.layout, copier(image))

    def restore(self, processor: LiveRegisters) -> None:
        """Make the registers this state: XFD first, then every component, what it lacks becoming initial.

        Of a confidential state XFD alone (``restore_fpregs_from_fpstate``, ``xfd_update_state``). Raises VsoError
        where another processor's registers are this state now.
        """
        if self.loaded_on not in (None, processor):
            raise VsoError("this state is in another processor's registers", help="switch it out there first")
        processor.xfd = self.xfd
        if not self.confidential:
            processor.restore(self.vso.image(), self.manager.config.kernel_max.features & ~PKRU)
        self.loaded_on = processor

    def check_in_use(self, in_use: int) -> None:
        """Refuse components that this state may not hold; see ``save``."""
        excess = in_use & ~(self.xfeatures | PKRU | INDEPENDENT)
        if not self.vso.is_guest:
            check_host_features(excess & GUEST_SUPERVISOR)
        for component in components_in(excess):
            raise PermissionDenied(
                component,
                f"{component_name(component)} is in use, and only {mask_text(self.xfeatures)} is permitted",
                help="request the component before it is used",
            )

    def enable(self, features: int) -> None:
        """Let it hold more, and hold them back no longer (``fpstate_realloc``); it never holds less again.

        Raises PermissionDenied where its kind is not permitted all of them. The buffer grows when they are used.
        """
        self.manager.permit(self.vso, features)
        self.xfd &= ~features
        if self.loaded_on:
            self.loaded_on.xfd = self.xfd

    def drop(self, features: int) -> None:
        """Make components of the saved state initial; what they held is scrubbed.

        Raises VsoError while registers are the state: the buffer then says nothing.
        """
        if self.loaded_on:
            raise VsoError("the registers are the state now", help="save them first")
        image = self.vso.image()
        kept = image.xstate_bv & ~features
        if kept != image.xstate_bv:
            self.manager.store(self.vso, kept, image.layout, copier(image))

    def check_swapped_out(self, deed: str) -> None:
        """Raise VsoError where the state is swapped in, or is a processor's registers."""
        if self.in_use or self.loaded_on:
            raise VsoError(
                f"the state has to be swapped out before {deed}",
                help="TaskFpu.swap(guest, processor, enter=False)",
            )


def stated_components(image: Image) -> int:
    """Return XSTATE_BV, with SSE where an image that XSAVE wrote states an MXCSR without it (SDM vol. 1, 13.7)."""
    mxcsr = int.from_bytes(image.store.view[MXCSR_AT : MXCSR_AT + 4], "little")
    alone = image.layout.format is Format.STANDARD and mxcsr != MXCSR_INIT
    return image.xstate_bv | (_SSE if alone else 0)
