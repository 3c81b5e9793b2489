"""A host task's state: ``struct fpu``, and the swap that puts a guest's state in its place."""

from __future__ import annotations

from fpstate.arch.component import component_name, components_in
from fpstate.errors import PermissionDenied, VsoError
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.fpstate import Fpstate
from fpstate.vso.guest import GuestFpu
from fpstate.vso.live_registers import LiveRegisters
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind


class TaskFpu:
    """The state of a task that is no guest, and what it runs for (``struct fpu``).

    ``fpstate`` is the active state, the task's own or a guest's; ``task_fpstate`` is the task's own while it is
    parked. ``pkru`` is the software copy, switched apart from the rest. ``permitted`` bounds what the task may come
    to hold, within its process's permission.
    """

    def __init__(self, manager: Manager, *, permitted: int | None = None) -> None:
        self.manager = manager
        self.permitted = manager.config.kernel_max.features if permitted is None else permitted
        start = manager.config.kernel_default.features & manager.permissions.mask(Kind.HOST)
        vso = manager.create(Kind.HOST, permitted=start & self.permitted)
        self.fpstate = Fpstate(manager, vso, manager.config.init_xfd)
        self.task_fpstate: Fpstate | None = None
        self.pkru = INIT_PKRU

    @property
    def guest_active(self) -> bool:
        """Whether a guest's state is in the place of the task's own."""
        return self.task_fpstate is not None

    def load(self, processor: LiveRegisters) -> None:
        """Make the registers the active state's, where they are not yet (``switch_fpu_return``)."""
        if self.fpstate.loaded_on is not processor:
            self.fpstate.restore(processor)

    def save(self, processor: LiveRegisters) -> None:
        """Save the registers, where they are this task's, and mark the buffer as what counts (``switch_fpu``)."""
        if self.fpstate.loaded_on is processor:
            self.fpstate.save(processor)
            self.fpstate.loaded_on = None

    def disown(self, processor: LiveRegisters) -> None:
        """Take these registers for nobody's: what is active is loaded anew before it counts (``last_cpu = -1``)."""
        if self.fpstate.loaded_on is processor:
            self.fpstate.loaded_on = None

    def swap(self, guest: GuestFpu, processor: LiveRegisters, *, enter: bool) -> None:
        """Put a guest's state in the place of the task's own, or take the task's own back (``fpu_swap_kvm_fpstate``).

        The registers are saved to the state that is active, if they are live and it is not confidential; then they
        become the other one's, all components but PKRU, IA32_XFD first; of a confidential state IA32_XFD alone.
        Raises VsoError on entering where a guest's state is in already, here or elsewhere, and on leaving where
        this guest's is not; and what ``Fpstate.save`` raises. Nothing is swapped then.
        """
        if enter and (self.guest_active or guest.in_use):
            raise VsoError(
                "a guest's state is swapped in already",
                help="leave it first: a task has one at a time, and a guest state is in one task at a time",
            )
        if not enter and (self.task_fpstate is None or self.fpstate is not guest.fpstate):
            raise VsoError("this guest's state is not swapped in here", help="enter it first")
        current = self.fpstate
        if current.loaded_on is processor:
            current.save(processor)
        current.loaded_on = None
        if self.task_fpstate is None:
            self.task_fpstate, self.fpstate = current, guest.fpstate
        else:
            self.fpstate, self.task_fpstate = self.task_fpstate, None
        guest.fpstate.in_use = enter
        self.fpstate.restore(processor)

    def enable(self, features: int) -> None:
        """Grow the task's own state by dynamic components that it is permitted (``xfd_enable_feature``).

        Raises PermissionDenied, for which the kernel kills with SIGILL.
        """
        for component in components_in(features & ~self.permitted):
            raise PermissionDenied(
                component,
                f"{component_name(component)} was used, and the task is not permitted it",
                help="ARCH_REQ_XCOMP_PERM before the first use",
            )
        (self.task_fpstate or self.fpstate).enable(features)

    def free(self) -> None:
        """Give the task's own state back. Raises VsoError while a guest is swapped in."""
        if self.guest_active:
            raise VsoError("a guest's state is swapped in", help="leave the guest first")
        self.manager.free(self.fpstate.vso)
