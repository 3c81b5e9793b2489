"""A scripted context on modelled processors: a vCPU of the model engine, and how each step is performed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from fpstate.arch.component import GUEST_SUPERVISOR
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.name import components_of
from fpstate.engine.model.processor import Processor
from fpstate.engine.model.script import Script, Setting, counts, result_of
from fpstate.engine.model.signals import deliver_signal, sigreturn
from fpstate.engine.model.step import (
    Ask,
    Check,
    Inspect,
    Refused,
    Release,
    Return,
    SetXfd,
    Signal,
    Step,
    Write,
    Yield,
)
from fpstate.engine.model.task import Task
from fpstate.engine.model.virtual_machine import write_guest_xfd
from fpstate.errors import PermissionRequestError, ProcessorFault
from fpstate.image import Image
from fpstate.program.block import Block
from fpstate.vso.permission import Kind, check_host_features
from fpstate.vso.vcpu import Exit, ExitKind
from fpstate.vso.vso import Vso

if TYPE_CHECKING:
    from fpstate.vso.fpstate import Fpstate


class ModelVcpu:
    """A task, or a task with a guest, and a script. Ended, ``exit`` tells how and ``block`` what it found."""

    def __init__(self, kernel: Kernel, task: Task, script: Script, setting: Setting) -> None:
        self.name = script.name
        self.kernel = kernel
        self.task = task
        self.setting = setting
        self.steps = script.steps(setting)
        self.state: Fpstate = task.vm.guest.fpstate if task.vm else task.fpu.fpstate
        self.vso: Vso = self.state.vso
        self.exit: Exit | None = None
        self.block: Block | None = None
        self.slices = 0
        self.preemptions = 0
        self.saves = 0
        self.at = 0
        self.checks = 0
        self.failed = 0
        self.problem = ""
        self.seen: dict[str, int] = {}

    @property
    def is_guest(self) -> bool:
        """Whether the script runs in a guest."""
        return self.setting.kind is Kind.GUEST

    def attach(self) -> None:
        """Nothing to be told: between slices the state lies in the VSO, and is taken from there."""

    def perform(self, core: Core) -> bool:
        """Do the next step; returns whether it was a voluntary exit. Raises what the step is refused for."""
        step = self.steps[self.at]
        if isinstance(step, Refused):
            self._must_be_refused(core, step)
        else:
            self._do(core, step)
        self.at += 1  # not before: an interrupted step is done again
        self.checks += counts(step)
        return isinstance(step, Yield)

    def finish(self, exit: Exit) -> None:
        """Keep how it ended; its task was ended before."""
        if exit.kind is ExitKind.FINISHED:
            self.block = Block(
                seed=self.setting.seed,
                argument=self.setting.argument,
                features=self.setting.features,
                result=result_of(self.checks, self.failed, self.at, self.problem),
            )
        self.exit = exit

    def _do(self, core: Core, step: Step) -> None:
        _PERFORM[type(step)](self, core, step)

    def _must_be_refused(self, core: Core, refused: Refused) -> None:
        try:
            self._do(core, refused.step)
        except ProcessorFault as fault:
            how = fault.mnemonic
        except PermissionRequestError as refusal:
            how = refusal.errno_name
        else:
            how = "done"
        if how != refused.how:
            self._problem(f"{refused.step} was {how}, not refused by {refused.how}")

    def _write(self, core: Core, step: Write) -> None:
        self._reached(core, step.registers)
        self.kernel.run(core, lambda processor: processor.write_all(step.registers))

    def _check(self, core: Core, step: Check) -> None:
        mask = self._reached(core, step.registers)

        def read(processor: Processor) -> Image:
            processor.use(mask)
            return processor.image(mask)

        registers = self.kernel.run(core, read).registers
        for name, expected in step.registers.items():
            found = registers[name]
            if found != expected:
                self._problem(f"{name} holds {found:#x} instead of {expected:#x}")

    def _inspect(self, core: Core, step: Inspect) -> None:
        image = core.processor.image((1 << 63) - 1)
        self.seen = {name: image.registers[name] for name in image.registers.names(widest=True)}

    def _release(self, core: Core, step: Release) -> None:
        self.kernel.run(core, lambda processor: processor.tilerelease())

    def _ask(self, core: Core, step: Ask) -> None:
        self.kernel.request(self.task, step.component, step.kind)

    def _reached(self, core: Core, registers: Mapping[str, int]) -> int:
        """Return the components of registers, where the context can get at them at all."""
        mask = 0
        for name in registers:
            mask |= components_of(name)
        if not self.is_guest:
            check_host_features(mask & GUEST_SUPERVISOR)
        self.kernel.check_enabled(core, mask)
        return mask

    def _problem(self, what: str) -> None:
        self.failed += 1
        self.problem = self.problem or f"step {self.at + 1}: {what}"


Perform = Callable[[ModelVcpu, Core, Any], object]

_PERFORM: Final[Mapping[type[Step], Perform]] = MappingProxyType(
    {
        Write: ModelVcpu._write,
        Check: ModelVcpu._check,
        Inspect: ModelVcpu._inspect,
        Yield: lambda vcpu, core, step: None,
        Release: ModelVcpu._release,
        Ask: ModelVcpu._ask,
        Signal: lambda vcpu, core, step: deliver_signal(vcpu.kernel, core),
        Return: lambda vcpu, core, step: sigreturn(vcpu.kernel, core),
        SetXfd: lambda vcpu, core, step: write_guest_xfd(vcpu.kernel, core, step.value),
    }
)
