"""Processes and tasks of the kernel model: what a thread has beside its ``struct fpu``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from fpstate.arch.component import INDEPENDENT, Component, mask_of
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.errors import FpStateError
from fpstate.image import Image
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.fpstate import stated_components
from fpstate.vso.guest import GuestFpu
from fpstate.vso.manager import Manager
from fpstate.vso.placement import copier
from fpstate.vso.task import TaskFpu

_NOT_INHERITED = mask_of(Component.PASID, Component.UINTR)
"""Initial in every child, whatever the parent has (Linux ``fpu_clone``): both stand for one thread."""


@dataclass(slots=True)
class Vm:
    """A task's virtual machine: its vCPU's state, what the guest enabled, and whether it runs (VM entry to exit)."""

    guest: GuestFpu
    xcr0: int
    xss: int
    entered: bool = False

    def enter(self, registers: KernelRegisters) -> None:
        """VM entry: the guest's PKRU, XCR0 and IA32_XSS (``kvm_load_guest_xsave_state``)."""
        registers.enable(self.xcr0, self.xss)
        registers.pkru = self.guest.pkru
        self.entered = True

    def exit(self, registers: KernelRegisters, host_pkru: int) -> None:
        """VM exit: the host's again (``kvm_load_host_xsave_state``)."""
        registers.enable(registers.config.xcr0, registers.config.xss)
        self.guest.pkru, registers.pkru = registers.pkru, host_pkru
        self.entered = False


@dataclass(slots=True, eq=False)
class Task:
    """A thread. Its process is its manager: permission is the process's, and lasts until exec.

    ``frames`` are what the signal frames on its stack hold of it, the innermost last; ``altstack`` is the size of its
    alternate signal stack, 0 for none; ``branches`` are its last branch records while it does not run, None where it
    records none; ``written`` is what a tracer wrote of its state since it last ran; ``killed`` is what it died of.
    """

    name: str
    fpu: TaskFpu
    frames: list[bytes] = field(default_factory=list)
    altstack: int = 0
    branches: Image | None = None
    records_branches: bool = False
    written: bytes | None = None
    vm: Vm | None = None
    killed: FpStateError | None = None

    @classmethod
    def start(cls, name: str, manager: Manager, *, permitted: int | None = None) -> Self:
        """Return a thread of a process in its initial state."""
        return cls(name, TaskFpu(manager, permitted=permitted))

    @property
    def manager(self) -> Manager:
        """The process."""
        return self.fpu.manager

    def clone(self, name: str, manager: Manager, registers: KernelRegisters | None) -> Task:
        """Return a child in ``manager``: of the same process, or of another.

        What the parent has of the default components goes over, dynamic ones do not (``fpu_clone``); PKRU does.
        ``registers``: the processor on which the parent runs, None where its buffer has the state.
        """
        own = self.fpu.task_fpstate or self.fpu.fpstate
        child = Task.start(name, manager, permitted=self.fpu.permitted)
        inherited = child.fpu.fpstate.xfeatures & ~_NOT_INHERITED & ~mask_of(Component.PKRU)
        image = registers.save(inherited) if registers and own.loaded_on is registers else own.vso.image()
        manager.store(
            child.fpu.fpstate.vso, stated_components(image) & inherited, image.layout, copier(image)
        )
        child.fpu.pkru = registers.pkru if registers and own.loaded_on is registers else self.fpu.pkru
        return child

    def exec(self, manager: Manager) -> None:
        """Begin another program: default components, default permission, initial registers, PKRU as by default."""
        earlier, permitted = self.fpu, self.fpu.permitted
        self.fpu = TaskFpu(manager, permitted=permitted)
        self.fpu.pkru = INIT_PKRU
        self.frames.clear()
        self.altstack, self.written = 0, None
        earlier.free()

    def switch_branches_out(self, registers: KernelRegisters) -> None:
        """Keep the last branch records where the task records them; perf does, apart from all else."""
        if self.records_branches:
            self.branches = registers.save(INDEPENDENT)

    def switch_branches_in(self, registers: KernelRegisters) -> None:
        """Load the task's records, or none: those of the task before must not be seen."""
        independent = registers.config.independent_features
        if independent:
            registers.restore(
                self.branches or Image.initial(registers.config.kernel_layout(independent)), independent
            )
