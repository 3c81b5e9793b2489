"""Many contexts: VSOs, the memory they lie in, what they may use, and who runs when."""

from fpstate.vso.audit import AuditReport, Canaries, Leak
from fpstate.vso.config import FpuConfig
from fpstate.vso.fpstate import Fpstate
from fpstate.vso.guest import GuestFpu
from fpstate.vso.live_registers import LiveRegisters
from fpstate.vso.manager import Manager, Statistics
from fpstate.vso.permission import Kind, Permissions
from fpstate.vso.pool import Buffer, Pool
from fpstate.vso.scheduler import Engine, RunQueue, RunReport, Scheduler
from fpstate.vso.task import TaskFpu
from fpstate.vso.vcpu import Exit, ExitKind, Vcpu
from fpstate.vso.vso import Vso

__all__ = [
    "AuditReport",
    "Buffer",
    "Canaries",
    "Engine",
    "Exit",
    "ExitKind",
    "Fpstate",
    "FpuConfig",
    "GuestFpu",
    "Kind",
    "Leak",
    "LiveRegisters",
    "Manager",
    "Permissions",
    "Pool",
    "RunQueue",
    "RunReport",
    "Scheduler",
    "Statistics",
    "TaskFpu",
    "Vcpu",
    "Vso",
]
