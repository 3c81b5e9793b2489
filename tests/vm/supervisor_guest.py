"""A guest at CPL 0 in 64-bit mode: a few instructions, two pages of data, and every exception told by its vector.

What it needs of KVM is execution at CPL 0 by hardware (or an emulator of it): a KVM that interprets CPL 0 code in
software has no vector instructions there.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpstate.engine.kvm.abi import (
    EXIT_IO,
    EXITS,
    REGISTERS,
    REGS,
    RUN_INTERNAL,
    RUN_IO,
    RUN_UNION,
    SEGMENT,
    SEGMENTS,
    SREGS_CONTROLS,
    SREGS_TABLES,
    TABLE,
    TABLES,
)
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine

MEMORY = 0x10000
ROOT, UPPER, LOWER, GDT, IDT, HANDLERS, CODE, INPUT, OUTPUT, STACK = (page << 12 for page in range(1, 11))
"""Guest-physical, and by one identity-mapped page of 2 MB also linear, addresses."""
FAULTED, DONE = 0xEE, 0xEF
"""Ports that the guest writes to: AL is the vector of an exception there, and nothing of interest here."""
VECTORS = 32
CODE_SELECTOR = 8
CODE_DESCRIPTOR = 0x00AF_9B00_0000_FFFF
"""A 64-bit code segment of DPL 0 (SDM Vol. 3, 3.4.5)."""
INTERRUPT_GATE = 0x8E
CR0_PE, CR0_MP, CR0_TS, CR0_ET, CR0_NE, CR0_PG = 1, 1 << 1, 1 << 3, 1 << 4, 1 << 5, 1 << 31
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, CR4_PKE = 1 << 5, 1 << 9, 1 << 10, 1 << 18, 1 << 22
CR0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG
CR4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
EFER = 1 << 8 | 1 << 10
"""LME and LMA."""
PAGE, LARGE_PAGE = 0x3, 0x83

BRAND = (0x8000_0002, 0x8000_0003, 0x8000_0004)
"""CPUID leaves of the processor's name."""

NAMES = {6: "#UD", 7: "#NM", 13: "#GP", 14: "#PF", 16: "#MF", 19: "#XM"}

INSTRUCTIONS = {
    "addps xmm0, xmm1": "0f58c1",
    "cpuid": "0fa2",
    "fld1": "d9e8",
    "fldpi": "d9eb",
    "hlt": "f4",
    "mov [rdi], eax": "8907",
    "mov [rdi+4], edx": "895704",
    "mov [rdi+8], ebx": "895f08",
    "mov [rdi+12], ecx": "894f0c",
    "out 0xef, al": "e6ef",
    "rdpkru": "0f01ee",
    "vaddps ymm0, ymm0, ymm1": "c5fc58c1",
    "vaddps zmm0, zmm0, zmm1": "62f17c4858c1",
    "vmovups ymm0, [rsi]": "c5fc1006",
    "vmovups [rdi], ymm15": "c57c113f",
    "vpaddd ymm2, ymm0, ymm1": "c5fdfed1",
    "wrpkru": "0f01ef",
    "xgetbv": "0f01d0",
    "xrstor64 [rsi]": "480fae2e",
    "xsave64 [rdi]": "480fae27",
    "xsetbv": "0f01d1",
}
"""What the guests run, as the assembler has it in Intel's syntax."""


@dataclass(frozen=True)
class Left:
    """Why a guest left: ``done``, the name of an exception, or KVM's exit."""

    reason: str
    eax: int = 0
    edx: int = 0

    @property
    def pair(self) -> int:
        """EDX:EAX."""
        return self.edx << 32 | self.eax


class SupervisorGuest:
    """One vCPU at CPL 0 with memory of its own; close it before its machine."""

    def __init__(self, machine: Machine, vcpu: KvmVcpu, *, slot: int = 0) -> None:
        from fpstate import _core

        self.vcpu = vcpu
        self.memory = _core.Memory(MEMORY)
        self._fill()
        machine.map(slot, 0, self.memory.address, MEMORY)
        self.set_controls()

    def set_controls(self, *, cr0: int = CR0, cr4: int = CR4) -> None:
        """Put the vCPU into 64-bit mode at CPL 0, with these control registers."""
        data = self.vcpu.sregs()
        for number, name in enumerate(SEGMENTS):
            code = name == "cs"
            selector = CODE_SELECTOR if code else 0
            kind = 11 if code or name == "tr" else 2 if name == "ldt" else 3
            system = name in ("tr", "ldt")
            flags = (kind, 1, 0, not code and not system, not system, code, not system, 0, 0, 0)
            limit = 0xFFFF if system else 0xFFFF_FFFF
            SEGMENT.pack_into(data, number * SEGMENT.size, 0, limit, selector, *flags)
        for number, base in enumerate((GDT, IDT)):
            TABLE.pack_into(data, SREGS_TABLES + number * TABLE.size, base, 0xFFF)
        assert len(TABLES) == 2
        for number, value in enumerate((cr0, 0, ROOT, cr4, 0, EFER)):
            at = SREGS_CONTROLS + number * 8
            data[at : at + 8] = value.to_bytes(8, "little")
        self.vcpu.set_sregs(data)

    def run(self, *code: str, rax: int = 0, rdx: int = 0, rcx: int = 0, data: bytes = b"") -> Left:
        """Run instructions from INSTRUCTIONS, with RSI at ``data`` and RDI at an empty output page."""
        text = bytes.fromhex("".join(INSTRUCTIONS[each] for each in (*code, "out 0xef, al", "hlt")))
        self.memory.write(CODE, text)
        self.memory.write(INPUT, data.ljust(4096, b"\0"))
        self.memory.write(OUTPUT, bytes(4096))
        registers = dict.fromkeys(REGISTERS, 0) | {"rax": rax, "rdx": rdx, "rcx": rcx, "rflags": 2}
        registers |= {"rip": CODE, "rsi": INPUT, "rdi": OUTPUT, "rsp": STACK + 4096}
        self.vcpu.set_regs(bytearray(REGS.pack(*registers.values())))
        return self._left(self.vcpu.run())

    def output(self, length: int = 4096) -> bytes:
        """Return what the guest wrote."""
        return self.memory.read(OUTPUT, length)

    def _left(self, exit: int) -> Left:
        shared = self.vcpu.shared
        if exit != EXIT_IO:
            suberror = f" {RUN_INTERNAL.unpack_from(shared, RUN_UNION)[0]}" if exit == 17 else ""
            return Left(EXITS.get(exit, str(exit)) + suberror)
        _, _, port, _, offset = RUN_IO.unpack_from(shared, RUN_UNION)
        value = shared[offset]
        rax, _, _, rdx = REGS.unpack(self.vcpu.regs())[:4]
        self._finish_output()
        if port == FAULTED:
            return Left(NAMES.get(value, f"exception {value}"))
        assert port == DONE
        return Left("done", rax & 0xFFFF_FFFF, rdx & 0xFFFF_FFFF)

    def _finish_output(self) -> None:
        """Let KVM finish the port write: it would change RIP at the next entry otherwise (api.rst, KVM_EXIT_IO)."""
        self.vcpu.immediate_exit = True
        self.vcpu.run()
        self.vcpu.immediate_exit = False

    def _fill(self) -> None:
        self.memory.write(ROOT, (UPPER | PAGE).to_bytes(8, "little"))
        self.memory.write(UPPER, (LOWER | PAGE).to_bytes(8, "little"))
        self.memory.write(LOWER, LARGE_PAGE.to_bytes(8, "little"))
        self.memory.write(GDT + CODE_SELECTOR, CODE_DESCRIPTOR.to_bytes(8, "little"))
        for vector in range(VECTORS):
            handler = HANDLERS + 16 * vector
            gate = handler | CODE_SELECTOR << 16 | INTERRUPT_GATE << 40
            self.memory.write(IDT + 16 * vector, gate.to_bytes(8, "little"))
            self.memory.write(handler, bytes((0xB0, vector, 0xE6, FAULTED, 0xF4)))  # mov al; out; hlt


def emulated_by_tcg() -> bool:
    """Whether this machine's processor is QEMU's TCG, by its brand string."""
    from fpstate import _core

    words = (word for leaf in BRAND for word in _core.cpuid(leaf))
    return b"QEMU TCG" in b"".join(word.to_bytes(4, "little") for word in words)
