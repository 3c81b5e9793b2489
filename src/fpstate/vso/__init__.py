"""Many contexts: VSOs, the memory they lie in, what they may use, and who runs when."""

from fpstate.vso.audit import AuditReport, Canaries, Leak
from fpstate.vso.checkpoint import Checkpoint, GeneralRegisters, SavedState
from fpstate.vso.config import FpuConfig
from fpstate.vso.fpstate import Fpstate
from fpstate.vso.guest import GuestFpu
from fpstate.vso.guest_state import GuestState, PkruPolicy
from fpstate.vso.live_registers import LiveRegisters
from fpstate.vso.manager import Manager, Statistics
from fpstate.vso.permission import Kind, Permissions
from fpstate.vso.pool import Buffer, Pool
from fpstate.vso.scheduler import Engine, RunQueue, RunReport, Scheduler
from fpstate.vso.state_file import read_state, write_state
from fpstate.vso.task import TaskFpu
from fpstate.vso.vcpu import Exit, ExitKind, Vcpu
from fpstate.vso.vso import Vso

__all__ = [
    "AuditReport",
    "Buffer",
    "Canaries",
    "Checkpoint",
    "Engine",
    "Exit",
    "ExitKind",
    "Fpstate",
    "FpuConfig",
    "GeneralRegisters",
    "GuestFpu",
    "GuestState",
    "Kind",
    "Leak",
    "LiveRegisters",
    "Manager",
    "Permissions",
    "PkruPolicy",
    "Pool",
    "RunQueue",
    "RunReport",
    "SavedState",
    "Scheduler",
    "Statistics",
    "TaskFpu",
    "Vcpu",
    "Vso",
    "read_state",
    "write_state",
]
