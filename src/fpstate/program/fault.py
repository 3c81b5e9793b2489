"""Programs that go wrong, one way each: to see that an engine stops that context and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fpstate.program.installed import flat_file
from fpstate.program.load import Program


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong. ``signal`` is what Linux sends for it to a native program, None for none.

    ``vector`` is the processor's exception, None when it raises none. ``operation`` is what eax
    says when the program leaves by itself.
    """

    name: str
    vector: int | None = None
    signal: str | None = None
    operation: int | None = None

    def load(self) -> Program:
        """The program itself; raises UnsupportedHere when it is not built."""
        return Program.from_file(flat_file(f"faults/{self.name}"), name=self.name)


DE, BP, UD, SS, GP, PF, MF, AC, XM = 0, 3, 6, 12, 13, 14, 16, 17, 19

_TABLE = (
    Fault("divide_by_zero", DE, "SIGFPE"),
    Fault("breakpoint", BP, "SIGTRAP"),
    Fault("undefined_instruction", UD, "SIGILL"),
    Fault("noncanonical_stack", SS, "SIGBUS"),
    Fault("halt", GP, "SIGSEGV"),
    Fault("misaligned", GP, "SIGSEGV"),
    Fault("noncanonical_jump", GP, "SIGSEGV"),
    Fault("wrong_port", GP, "SIGSEGV"),
    Fault("read_null", PF, "SIGSEGV"),
    Fault("write_kernel", PF, "SIGSEGV"),
    Fault("bad_stack", PF, "SIGSEGV"),
    Fault("return_to_zero", PF, "SIGSEGV"),
    Fault("x87_exception", MF, "SIGFPE"),
    Fault("alignment_check", AC, "SIGBUS"),
    Fault("sse_exception", XM, "SIGFPE"),
    Fault("endless_loop"),
    Fault("yield_for_ever", operation=1),
    Fault("failed", operation=0x123),
    Fault("reserved_operation", operation=2),
    Fault("oversized_result", operation=0),
    Fault("disorderly_exit", operation=0),
    Fault("system_call", operation=0),
)

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType({fault.name: fault for fault in _TABLE})
"""Every faulty program by name."""
