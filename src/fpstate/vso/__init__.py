"""Many contexts: VSOs, the memory they lie in, what they may use, and who runs when."""

from fpstate.vso.audit import AuditReport, Canaries, Leak
from fpstate.vso.config import FpuConfig
from fpstate.vso.manager import Manager, Statistics
from fpstate.vso.permission import Kind, Permissions
from fpstate.vso.pool import Buffer, Pool
from fpstate.vso.scheduler import Engine, RunQueue, RunReport, Scheduler
from fpstate.vso.vcpu import Exit, ExitKind, Vcpu
from fpstate.vso.vso import Vso

__all__ = [
    "AuditReport",
    "Buffer",
    "Canaries",
    "Engine",
    "Exit",
    "ExitKind",
    "FpuConfig",
    "Kind",
    "Leak",
    "Manager",
    "Permissions",
    "Pool",
    "RunQueue",
    "RunReport",
    "Scheduler",
    "Statistics",
    "Vcpu",
    "Vso",
]
