"""A model of what Linux does with extended state: tasks, switches, first uses, fork and exec.

It runs on modelled processors and follows ``arch/x86/kernel/fpu/core.c`` and ``xstate.c``; signals and guests
are in modules of their own. A state lies in a VSO, which is elastic; the sizes of Linux's buffers are ``Fpstate.size``.
Two things are stricter than in Linux: a component that is in use and not permitted is refused when it is saved, and
guest-only components in a host are refused with a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from fpstate.arch.component import (
    AMX,
    LEGACY,
    Component,
    component_name,
    components_in,
    mask_of,
    mask_text,
)
from fpstate.arch.cpu import Cpu
from fpstate.engine.model.behaviour import Behaviour
from fpstate.engine.model.fault import NOT_AVAILABLE, UNDEFINED, fault
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.engine.model.processor import Processor
from fpstate.engine.model.task import Task
from fpstate.errors import FpStateError, PoolExhausted, ProcessorFault, VsoError
from fpstate.image import Image
from fpstate.vso.config import FpuConfig
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.pool import Pool

T = TypeVar("T")

_PKRU: Final = mask_of(Component.PKRU)


@dataclass(slots=True, eq=False)
class Core:
    """A processor and the task that runs on it."""

    registers: KernelRegisters
    current: Task | None = None

    @property
    def processor(self) -> Processor:
        """The modelled processor."""
        return self.registers.processor


class Kernel:
    """Processors of one kind, their tasks, and the one list of free buffers.

    Methods that change registers take the core to do it on. What a task is refused kills it: ``Task.killed``
    then has the reason, which is raised as well, and the registers are wiped.
    """

    def __init__(
        self,
        cpu: Cpu,
        *,
        processors: int = 1,
        pool: Pool | None = None,
        behaviour: Behaviour | None = None,
        config: FpuConfig | None = None,
    ) -> None:
        self.cpu = cpu
        self.pool = pool or Pool()
        self.config = config or FpuConfig.from_cpu(cpu)
        self.behaviour = behaviour
        self.cores: list[Core] = []
        for _ in range(processors):
            self.add_core(KernelRegisters(self.config, behaviour))

    def add_core(self, registers: KernelRegisters) -> Core:
        """Return one more core, with these registers."""
        core = Core(registers)
        self.cores.append(core)
        return core

    # Tasks

    def process(self, parent: Manager | None = None) -> Manager:
        """Return a new process: a manager with default permission, within the policy of its parent."""
        if parent is None:
            return Manager(config=self.config, pool=self.pool)
        return Manager(
            config=self.config,
            pool=self.pool,
            policy=parent.permissions.policy,
            shrink_after=parent.shrink_after,
        )

    def spawn(self, name: str = "task", *, permitted: int | None = None) -> Task:
        """Return the first thread of a new process."""
        return Task.start(name, self.process(), permitted=permitted)

    def thread(self, task: Task, *, shadow_stack: int | None = None) -> Task:
        """Return another thread of a task's process: permission is shared, dynamic state is not inherited.

        ``shadow_stack`` becomes its PL3_SSP where the parent has a shadow stack (``update_fpu_shstk``).
        """
        return self._clone(task, task.manager, shadow_stack)

    def fork(self, task: Task) -> Task:
        """Return a thread of a new process, which inherits permission, the guest's and its lock too.

        Its stacks are copies: a child of a signal handler returns from it too.
        """
        process = self.process(task.manager)
        process.permissions = task.manager.permissions.inherited(task.altstack)
        child = self._clone(task, process, None)
        child.frames, child.altstack = list(task.frames), task.altstack
        return child

    def exec(self, task: Task) -> None:
        """Run another program in a task: nothing of state and permission is left."""
        core = self._core_of(task)
        if core:
            self.switch(core, None)
        if task.vm:
            task.vm.guest.free()
            task.vm = None
        task.exec(self.process(task.manager))
        if core:
            self.switch(core, task)

    def end(self, task: Task) -> None:
        """End a task; its state goes back to the pool."""
        core = self._core_of(task)
        if core:
            self._abandon(core)
        self._free(task)

    # Switching

    def switch(self, core: Core, task: Task | None) -> None:
        """Make a task the current one: save the one before, restore this one in all components, PKRU apart.

        Whatever is raised, no task is the current one then: registers belong to a task that was loaded whole.
        """
        if core.current is task:
            return
        if core.current:
            self._save(core, core.current)
        core.current = None
        if task:
            self._load(core, task)
            core.current = task

    def idle(self, core: Core) -> None:
        """Let a core idle: tiles are released, which deep idle states need (``fpu_idle_fpregs``)."""
        self.switch(core, None)
        if core.registers.in_use & AMX:
            with core.registers.kernel_mode() as processor:
                processor.tilerelease()

    def run(self, core: Core, operation: Callable[[Processor], T]) -> T:
        """Do what instructions of the current context do; their first use of a dynamic component is settled.

        #NM for IA32_XFD in a host: the state grows where the task is permitted it, and the operation is done
        again (``handle_xfd_event``); else raises PermissionDenied, which is SIGILL, and ``kill`` is what follows
        in a task that does not handle it. In a guest, #NM is the guest's. Other faults are raised as they are.
        """
        task = self.running(core)
        try:
            return operation(core.processor)
        except ProcessorFault as error:
            held = core.registers.take_xfd_error() if error.vector == NOT_AVAILABLE else 0
            if not held:
                raise
            if task.vm and task.vm.entered:
                task.vm.guest.xfd_err = held
                raise
        task.fpu.enable(held)
        core.registers.reload()
        return operation(core.processor)

    def kill(self, core: Core, reason: FpStateError) -> None:
        """End the current task for a reason, and wipe what it left in the registers."""
        task = self.running(core)
        task.killed = reason
        self._abandon(core)
        self._free(task)

    # Permission

    def request(self, task: Task, component: int, kind: Kind = Kind.HOST) -> None:
        """ARCH_REQ_XCOMP_PERM and ARCH_REQ_XCOMP_GUEST_PERM, for the whole process."""
        task.manager.request(component, kind)

    def sigaltstack(self, task: Task, size: int) -> None:
        """Give a thread an alternate signal stack of ``size`` bytes; 0 takes it away. Raises AltstackRefused."""
        task.manager.permissions.set_altstack(size, task.altstack)
        task.altstack = size

    # Registers that are not enabled cannot be reached

    def check_enabled(self, core: Core, components: int) -> None:
        """Raise #UD for components that neither XCR0 nor IA32_XSS enables, as their instructions or MSRs do."""
        processor = core.processor
        enabled = processor.xcr0 | processor.xss | LEGACY
        for component in components_in(components & ~enabled):
            raise fault(
                UNDEFINED,
                f"{component_name(component)} is not enabled here, only {mask_text(enabled)}",
                "SDM Vol. 1, 13.3",
            )

    def _clone(self, task: Task, manager: Manager, shadow_stack: int | None) -> Task:
        core = self._core_of(task)
        child = task.clone(f"child of {task.name}", manager, core.registers if core else None)
        vso = child.fpu.fpstate.vso
        if shadow_stack is not None and vso.in_use & mask_of(Component.CET_U):
            image = vso.image().copy()
            image.registers["pl3_ssp"] = shadow_stack
            manager.load(vso, image)
        return child

    def _save(self, core: Core, task: Task) -> None:
        """Save the current task; what it may not use kills it, and the registers are then nobody's."""
        if task.vm and task.vm.entered:
            task.vm.exit(core.registers, task.fpu.pkru)
        elif not task.fpu.guest_active:
            task.fpu.pkru = core.registers.pkru
        task.switch_branches_out(core.registers)
        try:
            task.fpu.save(core.registers)
        except (FpStateError, MemoryError) as error:
            out_of_memory = PoolExhausted(f"no memory for the state of {task.name}")
            self.kill(core, error if isinstance(error, FpStateError) else out_of_memory)
            raise

    def _load(self, core: Core, task: Task) -> None:
        """Load a task; where that fails or is interrupted, the registers are nobody's. PKRU is written anew."""
        task.written = None
        try:
            task.fpu.load(core.registers)
            core.registers.pkru = task.fpu.pkru
            task.switch_branches_in(core.registers)
        except BaseException:
            task.fpu.disown(core.registers)
            raise

    def _abandon(self, core: Core) -> None:
        """Leave the current task without saving it: everything enabled becomes initial."""
        task = self.running(core)
        core.current = None
        if task.vm and task.vm.entered:
            task.vm.exit(core.registers, task.fpu.pkru)
        everything = self.config.xcr0 | self.config.xss
        core.registers.restore(Image.initial(self.config.kernel_layout(LEGACY)), everything)

    def _free(self, task: Task) -> None:
        """Give a task's states back, a guest's that is swapped in too, and take its signal stack away."""
        self.sigaltstack(task, 0)
        fpu = task.fpu
        for state in (fpu.fpstate, fpu.task_fpstate):
            if state:
                state.loaded_on, state.in_use = None, False
        fpu.fpstate, fpu.task_fpstate = fpu.task_fpstate or fpu.fpstate, None
        if task.vm:
            task.vm.guest.free()
            task.vm = None
        task.fpu.free()

    def running(self, core: Core) -> Task:
        """Return the task that runs on a core; raises VsoError where none does."""
        if core.current is None:
            raise VsoError("no task runs on this core", help="switch to one first")
        return core.current

    def _core_of(self, task: Task) -> Core | None:
        return next((core for core in self.cores if core.current is task), None)
