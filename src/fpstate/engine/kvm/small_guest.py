"""A small guest that finds out what neither CPUID nor an ioctl says: which XCR0 and PKRU programs find.

A KVM without hardware virtualization runs CPL 3 with the host's XCR0 and CR4, whatever the guest has in them.
"""

from __future__ import annotations

from typing import Final, Protocol

from fpstate.engine.kvm.guest import KvmGuest
from fpstate.program.block import FINISHED, OUT_INSTRUCTION, RESULT, RESULT_SIZE
from fpstate.program.load import Program, Segment
from fpstate.vso.scheduler import RunQueue
from fpstate.vso.vcpu import Exit, ExitKind

_CLEAR_ECX: Final = bytes.fromhex("31c9")
_XGETBV: Final = bytes.fromhex("0f01d0")
_RDPKRU: Final = bytes.fromhex("0f01ee")
_STORE_EAX: Final = bytes.fromhex("8987") + RESULT.to_bytes(4, "little")
"""mov %eax, RESULT(%rdi)"""
_FOUR_BYTES: Final = bytes((0x48, 0xC7, 0x47, RESULT_SIZE)) + (4).to_bytes(4, "little")
"""movq $4, RESULT_SIZE(%rdi)"""
_FINISH: Final = b"\xb8" + FINISHED.to_bytes(4, "little") + OUT_INSTRUCTION
_QUANTUM_NS, _BUDGET_NS, _TRIES = 1_000_000, 1_000_000_000, 10


class Engine(Protocol):
    """What makes and runs a guest; the KVM engine does."""

    def small_guest(self, program: Program) -> KvmGuest:
        """Return a guest with the legacy components alone."""

    def queue(self) -> RunQueue[KvmGuest]:
        """Return an empty queue."""


def xcr0_inside(engine: Engine) -> int | None:
    """Return bits 0 to 31 of XCR0 as a guest finds them that was given x87 and SSE; None where XGETBV faults."""
    return _eax_of(engine, "xgetbv", _XGETBV)


def pkru_inside(engine: Engine) -> int | None:
    """Return the PKRU that a guest finds at its start; None where RDPKRU faults."""
    return _eax_of(engine, "rdpkru", _RDPKRU)


def _eax_of(engine: Engine, name: str, instruction: bytes) -> int | None:
    code = _CLEAR_ECX + instruction + _STORE_EAX + _FOUR_BYTES + _FINISH
    program = Program(name, (Segment(0, code, len(code), writable=True, executable=True),), 0)
    guest = engine.small_guest(program)
    queue = engine.queue()
    queue.add(guest)
    for _ in range(_TRIES):
        if guest.exit is not None:
            break
        queue.run(_QUANTUM_NS, _BUDGET_NS)
    else:
        queue.clear()
        guest.decide(Exit(ExitKind.EXPIRED))
        guest.end()
    if guest.exit is None or guest.exit.kind is not ExitKind.FINISHED or guest.block is None:
        return None
    return int.from_bytes(guest.block.result, "little")
