"""A guest's general, segment and control registers, laid out as struct kvm_sync_regs has them."""

from __future__ import annotations

import struct
from typing import Final

from fpstate.engine.kvm.abi import (
    CONTROLS,
    EVENTS_SIZE,
    REGISTERS,
    REGS_SIZE,
    SEGMENT,
    SEGMENTS,
    SREGS_CONTROLS,
    SREGS_SIZE,
)
from fpstate.engine.kvm.supervisor import descriptor_registers, user_segment, user_segments
from fpstate.program.block import ENTRY_RFLAGS

SREGS: Final = REGS_SIZE
EVENTS: Final = SREGS + SREGS_SIZE
SIZE: Final = EVENTS + EVENTS_SIZE
"""struct kvm_regs, struct kvm_sregs and struct kvm_vcpu_events, one behind the other."""
_AT: Final = {name: 8 * index for index, name in enumerate(REGISTERS)} | {
    name: SREGS + SREGS_CONTROLS + 8 * index for index, name in enumerate(CONTROLS)
}
_SEGMENT_AT: Final = {name: SREGS + SEGMENT.size * index for index, name in enumerate(SEGMENTS)}
APIC_BASE: Final = slice(_AT["apic_base"], _AT["apic_base"] + 8)
_SELECTOR: Final = 12
_LOADABLE: Final = ("cs", "ds", "es", "fs", "gs", "ss")
_CS_SELECTOR: Final = _SEGMENT_AT["cs"] + _SELECTOR

_CR0: Final = 0x80050033
"""PG, AM, WP, NE, ET, MP, PE (SDM vol. 3, 2.5): #MF for x87 errors, #AC where a guest sets AC."""
_CR4: Final = 0x620
"""PAE, OSFXSR, OSXMMEXCPT."""
FSGSBASE, OSXSAVE, PKE = 1 << 16, 1 << 18, 1 << 22
_EFER: Final = 0xD00
"""LME, LMA, NXE. Not SCE: a guest has nobody to call."""
RESUME_FLAG: Final = 1 << 16
_GUEST_FLAGS: Final = 0x244DD5 | RESUME_FLAG
"""What a guest itself can change, or be stopped with: CF, PF, AF, ZF, SF, TF, DF, OF, NT, AC, ID; RF."""


def foreign_flags(rflags: int) -> int:
    """Return the bits of an RFLAGS that are not an entry's and that no guest can change (IOPL, IF, VM)."""
    return (rflags ^ ENTRY_RFLAGS) & ~_GUEST_FLAGS


class Context:
    """Registers by name over ``data``, which is what the run area of a vCPU takes and gives."""

    __slots__ = ("data",)

    def __init__(self, data: bytearray | None = None) -> None:
        self.data = bytearray(SIZE) if data is None else data

    @classmethod
    def start(cls, *, root: int, entry: int, stack: int, argument: int, cr4: int) -> Context:
        """Return the registers of a guest at its entry: CPL 3, 64-bit mode, page tables at ``root``."""
        context = cls()
        segments = user_segments() + descriptor_registers()
        context.data[SREGS : SREGS + len(segments)] = segments
        for name, value in (("cr0", _CR0), ("cr3", root), ("cr4", _CR4 | cr4), ("efer", _EFER)):
            context[name] = value
        for name, value in (("rip", entry), ("rsp", stack), ("rdi", argument), ("rflags", ENTRY_RFLAGS)):
            context[name] = value
        return context

    def __getitem__(self, name: str) -> int:
        return int(struct.unpack_from("<Q", self.data, _AT[name])[0])

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("<Q", self.data, _AT[name], value)

    @property
    def general(self) -> bytes:
        """The general registers, rip and rflags, as struct kvm_regs."""
        return bytes(self.data[:SREGS])

    def base(self, segment: str) -> int:
        """Return the base of a segment, by its register's name."""
        return int(struct.unpack_from("<Q", self.data, _SEGMENT_AT[segment])[0])

    def set_base(self, segment: str, value: int) -> None:
        """Set the base of a segment."""
        struct.pack_into("<Q", self.data, _SEGMENT_AT[segment], value)

    @property
    def selectors(self) -> dict[str, int]:
        """The selectors that a guest can load, by the names of the registers."""
        at = {name: _SEGMENT_AT[name] + _SELECTOR for name in _LOADABLE}
        return {name: int.from_bytes(self.data[start : start + 2], "little") for name, start in at.items()}

    @property
    def cpl(self) -> int:
        """The privilege level: the low bits of CS."""
        return self.data[_CS_SELECTOR] & 3

    @property
    def delivering(self) -> bool:
        """Whether an exception waits to be delivered: exception.injected of struct kvm_vcpu_events."""
        return bool(self.data[EVENTS])

    def leave_handler(self, *, rip: int, rsp: int, rflags: int) -> None:
        """Go back to the guest's own code, as IRET would."""
        self["rip"], self["rsp"], self["rflags"] = rip, rsp, rflags
        for name in ("cs", "ss"):
            start = _SEGMENT_AT[name]
            self.data[start : start + SEGMENT.size] = user_segment(name)
