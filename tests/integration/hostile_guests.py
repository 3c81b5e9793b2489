"""Guests that change what user mode can change, and then meet a tick, fault, or leave: the table, and its program.

One flat program holds every row; a guest's argument says which it is. ``hostile_guests.py ENGINE FILE`` builds it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fpstate.program import include_dir

WAYS = {
    "tick": "7: jmp 7b",
    "fault": "ud2",
    "call": "mov eax, 0; call gs:[0]; hlt",
    "port": "mov eax, 0; out 0xF5, eax; hlt",
}
"""How a guest gets out after its deed."""
EXPIRED, FINISHED, REFUSED, DENIED = "expired", "finished", "refused", "denied"
PAGE_FAULT, PROTECTION, STACK, UNDEFINED, TRAP = (
    "SIGSEGV 14",
    "SIGSEGV 13",
    "SIGBUS 12",
    "SIGILL 6",
    "SIGTRAP 1",
)
GUEST_FLAGS = ("-nostdlib", "-static-pie", "-ffreestanding")
USUAL = {"tick": EXPIRED, "fault": UNDEFINED, "call": FINISHED, "port": FINISHED}
NATIVE, KVM = "native", "kvm"


@dataclass(frozen=True)
class Deed:
    """What a guest does first. ``ends``: how it ends by each way where that is not the usual; ``kvm``: there. Where
    processors or KVMs differ, "one or another".

    ``engines``: where it can be tried; ``needs``: a feature of this machine.
    """

    name: str
    code: str
    ends: dict[str, str] = field(default_factory=dict)
    kvm: dict[str, str] = field(default_factory=dict)
    engines: tuple[str, ...] = (NATIVE, KVM)
    needs: str = ""


@dataclass(frozen=True)
class Row:
    """One guest of the table."""

    number: int
    name: str
    ends: dict[str, str]
    needs: str


def _flags(bits: int) -> str:
    return f"pushfq; or dword ptr [rsp], {bits:#x}; popfq"


def _pkru(value: int) -> str:
    return f"xor ecx, ecx; xor edx, edx; mov eax, {value:#x}; wrpkru"


def _find(step: str, code: int) -> str:
    """Four bytes of the core's code, searched from the exit routine: XSAVEC64, XRSTOR64, or the jump to a guest."""
    return f"mov rax, gs:[0]; 8: {step} rax; cmp dword ptr [rax], {code:#x}; jne 8b;"


def _far_to(way: str) -> str:
    """32-bit code: natively it lies in a page below 4 GiB that the argument names, in a guest all memory is there."""
    number = list(WAYS).index(way)
    return f"""
    mov eax, r13d
    add eax, {16 * number}
    lea rcx, [rip + compatible_{way}]
    test r13d, r13d
    cmovz rax, rcx
    push 0x23
    push rax
    retfq
    compatible_{way}: .byte {", ".join(map(hex, COMPATIBLE[way]))}
    """


COMPATIBLE = {
    "tick": bytes.fromhex("ebfe"),
    "fault": bytes.fromhex("0f0b"),
    "call": bytes.fromhex("31c0 65ff15 00000000 f4"),
    "port": bytes.fromhex("31c0 e7f5 f4"),
}
"""The ways as 32-bit code."""
LOW_PAGE = b"".join(code.ljust(16, b"\xf4") for code in COMPATIBLE.values())

_CLOSED = {"call": PAGE_FAULT}
_COPY_OF_VCPU = """
    sub rsp, 1024
    xor ecx, ecx
    8: mov rax, gs:[rcx * 8]
    mov [rsp + rcx * 8], rax
    inc ecx
    cmp ecx, 40
    jb 8b
    mov rax, rsp
    wrgsbase rax
    lea rsp, [rsp + 1024]
"""
_TILES = """
    lea rax, [rsp - 1024]
    and rax, -64
    pxor xmm0, xmm0
    movups [rax], xmm0; movups [rax + 16], xmm0; movups [rax + 32], xmm0; movups [rax + 48], xmm0
    mov byte ptr [rax], {palette}
    mov word ptr [rax + 16], 64
    mov byte ptr [rax + 48], 16
    ldtilecfg [rax]
"""

# fmt: off
DEEDS = (
    Deed("nothing", ""),
    Deed("32-bit code", "",  # natively a tick may come before its end does
         {"tick": REFUSED, **{way: f"{end} or {REFUSED}" for way, end in
                              (("fault", UNDEFINED), ("call", PROTECTION), ("port", PROTECTION))}},
         kvm={"tick": EXPIRED, "fault": UNDEFINED, "call": f"{FINISHED} or {PROTECTION} or {PAGE_FAULT}",
              "port": FINISHED}),
    Deed("ss", "mov eax, ss; mov ss, eax"),
    Deed("ds and es", "mov eax, ss; mov ds, eax; mov es, eax"),
    Deed("fs", "mov eax, ss; mov fs, eax"),
    Deed("fs of 0", "xor eax, eax; mov fs, eax"),
    Deed("gs", "mov eax, ss; mov gs, eax", {"call": PAGE_FAULT}),
    Deed("fs base", "mov rax, 0x123456789000; wrfsbase rax"),
    Deed("gs base", "mov eax, 0x1000; wrgsbase rax", {"call": PAGE_FAULT}),
    Deed("gs base with an exit", "mov rax, gs:[0]; lea rcx, [rsp - 2048]; mov [rcx], rax; wrgsbase rcx",
         {"call": PAGE_FAULT}, kvm={"call": FINISHED}),
    Deed("gs base with a vCPU", _COPY_OF_VCPU, {"call": UNDEFINED}, kvm={"call": FINISHED}),
    Deed("pkru: all closed", _pkru(0xFFFFFFFF), _CLOSED, needs="pkru"),
    Deed("pkru: key 0 closed", _pkru(0x1), _CLOSED, needs="pkru"),
    Deed("pkru: key 0 not written", _pkru(0x2), _CLOSED, needs="pkru"),
    Deed("pkru: all open", _pkru(0x0), needs="pkru"),
    Deed("pkru: key 0 open alone", _pkru(0xFFFFFFFC), needs="pkru"),
    Deed("tf", _flags(0x100), {"tick": TRAP, "call": TRAP, "port": TRAP}),
    Deed("ac", _flags(0x40000)),
    Deed("ac, stack misaligned", "sub rsp, 4;" + _flags(0x40000), {"call": "SIGBUS 17"}),
    Deed("nt", _flags(0x4000)),
    Deed("df", "std"),
    Deed("rf", _flags(0x10000)),
    Deed("id", _flags(0x200000)),
    Deed("iopl", _flags(0x3000)),
    Deed("every flag of its own", _flags(0x254CD5)),
    Deed("mxcsr", "push 0x3F; ldmxcsr [rsp]"),
    Deed("mxcsr, all set", "push 0xFFFF; ldmxcsr [rsp]"),
    Deed("x87 exception pending", "push 0x37B; fldcw [rsp]; fldz; fld1; fdivrp st(1), st"),
    Deed("x87 stack full", "fldz; fldz; fldz; fldz; fldz; fldz; fldz; fldz"),
    Deed("vector registers", "pcmpeqd xmm0, xmm0; pcmpeqd xmm15, xmm15"),
    Deed("general registers", "".join(f"mov {name}, -1; " for name in
         ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"])),
    Deed("tiles configured", _TILES.format(palette=1), engines=(NATIVE,), needs="tilecfg"),
    Deed("a tile", _TILES.format(palette=1) + "; tilezero tmm0", dict.fromkeys(WAYS, DENIED), engines=(NATIVE,),
         needs="tiledata not permitted"),
    Deed("stack at a hole", "mov rax, 0x8000000000000000; mov rsp, rax", {"call": STACK}),
    Deed("stack at 16", "mov esp, 16", {"call": PAGE_FAULT}),
    Deed("the exit with a stack at 8", "mov rax, gs:[0]; mov esp, 8; jmp rax", dict.fromkeys(WAYS, PAGE_FAULT),
         kvm=dict.fromkeys(WAYS, "failed")),
)
"""Everything that user mode can change of what the way back needs, each with its end by each way."""

ALONE = (
    Deed("pkru closed for a moment", f"{_pkru(0xFFFFFFFF)}; mov ebx, 3000000; 8: dec ebx; jnz 8b; {_pkru(0x55555554)};"
         + WAYS["call"], {"": FINISHED}, needs="pkru"),
    Deed("pkru closed over yields", f"{_pkru(0xFFFFFFFF)}; mov ebx, 50; 8: mov eax, 1; out 0xF5, eax; dec ebx; jnz 8b;"
         f"rdpkru; mov ebp, eax; {_pkru(0x55555554)}; mov eax, 256; cmp ebp, -1; mov ecx, 0; cmovz eax, ecx;"
         "call gs:[0]", {"": FINISHED}, needs="pkru"),
    Deed("pkru and registers over ticks", "mov rsi, 0x1111111111111111; mov r15, rsi; mov ebp, 3000000; std;"
         f"{_pkru(0xFFFFFFFD)}; 8: dec ebp; jnz 8b; cmp rsi, r15; jne 9f; cmp eax, 0xFFFFFFFD; jne 9f; test ecx, ecx;"
         f"jnz 9f; {_pkru(0x55555554)}; cld; {WAYS['call']}; 9: ud2", {"": FINISHED}, needs="pkru"),
    Deed("into the save", _find("inc", 0x21C70F48) + "xor ecx, ecx; jmp rax", {"": PAGE_FAULT}, engines=(NATIVE,),
         needs="xsavec"),
    Deed("into the entry", _find("dec", 0x29AE0F48) + "xor ecx, ecx; jmp rax", {"": REFUSED}, engines=(NATIVE,)),
    Deed("a loop in the entry", _find("dec", 0x2524FF65) + "mov gs:[136], rax; jmp rax", {"": EXPIRED},
         engines=(NATIVE,)),
    Deed("tiles without a configuration that is legal", _TILES.format(palette=9), {"": PROTECTION}, engines=(NATIVE,),
         needs="tilecfg"),
    Deed("a selector that is none", "mov eax, 0xFFF8; mov ds, eax", {"": PROTECTION}),
    Deed("ss of 0", "xor eax, eax; mov ss, eax", {"": PROTECTION}),
    Deed("a far jump to nowhere", "push 0x33; mov rax, 0x8000000000000000; push rax; retfq", {"": PROTECTION}),
    Deed("a jump to nowhere", "mov rax, 0x8000000000000000; jmp rax", {"": PROTECTION}),
    Deed("x87 exception at the end", "push 0x37B; fldcw [rsp]; fldz; fld1; fdivrp st(1), st;" + WAYS["call"],
         {"": FINISHED}),
    Deed("x87 exception taken", "push 0x37B; fldcw [rsp]; fldz; fld1; fdivrp st(1), st; fwait", {"": "SIGFPE 16"}),
    Deed("stack runs down", "8: push rax; jmp 8b", {"": PAGE_FAULT}),
    Deed("code that rewrites itself", "lea rcx, [rip + 8f]; mov ebx, 1000; 9: mov [rcx + 1], bl; 8: mov al, 0;"
         "cmp al, bl; jne 7f; dec ebx; jnz 9b;" + WAYS["call"] + "; 7: ud2", {"": FINISHED}),
    Deed("cli", "cli", {"": PROTECTION}),
    Deed("hlt", "hlt", {"": PROTECTION}),
    Deed("xsetbv", "xor ecx, ecx; xgetbv; xsetbv", {"": PROTECTION}),
    Deed("xsaves", "mov eax, -1; mov edx, -1; and rsp, -64; xsaves [rsp]", {"": PROTECTION},
         kvm={"": f"{PROTECTION} or {UNDEFINED}"}, needs="xsaves"),
    Deed("ud1", "ud1 rax, rax", {"": UNDEFINED}),
    Deed("a transaction", "xbegin 8f; 8:" + WAYS["call"], {"": f"{FINISHED} or {UNDEFINED}"}),
    # System calls are the host's: natively a guest is trusted. These do not end the process.
    Deed("getpid", "mov eax, 39; syscall;" + WAYS["call"], {"": FINISHED}, engines=(NATIVE,)),
    Deed("getpid by int 0x80", "mov eax, 20; int 0x80;" + WAYS["call"], {"": FINISHED}, engines=(NATIVE,)),
    Deed("rt_sigaction that only asks", "mov eax, 13; mov edi, 11; xor esi, esi; xor edx, edx; mov r10d, 8; syscall;"
         + WAYS["call"], {"": FINISHED}, engines=(NATIVE,)),
    Deed("pause", "mov eax, 34; syscall;" + WAYS["call"], {"": FINISHED}, engines=(NATIVE,)),
    Deed("nanosleep", "push 0; push 100; mov rdi, rsp; xor esi, esi; mov eax, 35; syscall;" + WAYS["call"],
         {"": FINISHED}, engines=(NATIVE,)),
    Deed("arch_prctl of the fs base", "mov eax, 158; mov edi, 0x1002; mov esi, 0x1234000; syscall;" + WAYS["call"],
         {"": FINISHED}, engines=(NATIVE,)),
    Deed("prctl", "mov eax, 157; mov edi, 16; mov rsi, rsp; syscall;" + WAYS["call"], {"": FINISHED},
         engines=(NATIVE,)),
)
"""Guests with one end, whatever the way."""

ENDING_THE_PROCESS = (
    Deed("exit_group", "mov eax, 231; mov edi, 7; syscall"),
    Deed("exit", "mov eax, 60; mov edi, 7; syscall"),
    Deed("fork", "mov eax, 57; syscall; test eax, eax; jnz 8f; mov eax, 231; syscall; 8:" + WAYS["call"]),
)
"""System calls that end the process or its copy, as they would anywhere: not mixed with others."""
# fmt: on


def _bodies() -> Iterator[tuple[str, str, Deed, str]]:
    """Name, code, deed and way of each row."""
    for deed in DEEDS:
        for way, leave in WAYS.items():
            code = _far_to(way) if deed.name == "32-bit code" else f"{deed.code}\n{leave}"
            yield f"{deed.name}, {way}", code, deed, way
    for deed in (*ALONE, *ENDING_THE_PROCESS):
        yield deed.name, deed.code, deed, ""


def _ends(deed: Deed, way: str) -> dict[str, str]:
    usual = deed.ends.get(way, USUAL.get(way, ""))
    return {engine: deed.kvm.get(way, usual) if engine == KVM else usual for engine in deed.engines}


ROWS = tuple(
    Row(number, name, _ends(deed, way), deed.needs) for number, (name, _, deed, way) in enumerate(_bodies())
)


def rows(engine: str, has: dict[str, bool]) -> list[Row]:
    """The rows that can be tried with an engine on a machine with these features."""
    return [row for row in ROWS if row.ends.get(engine) and (not row.needs or has[row.needs])]


def source(engine: str) -> str:
    """The program for an engine: it goes on at the row that the upper half of its argument numbers; r13d is the rest.

    Rows of the other engine alone are left out: to hold a tile instruction is denied in a KVM that loses tiles.
    """
    cases = [
        f"row_{number}:\n{code if engine in deed.engines else ''}\nhlt"
        for number, (_, code, deed, _) in enumerate(_bodies())
    ]
    table = "\n".join(f".long row_{number} - table" for number in range(len(cases)))
    return f"""
    .intel_syntax noprefix
    #include "fpstate_guest.h"
    FPSTATE_ENTRY
    mov rbx, [rdi + FPSTATE_ARGUMENT]
    mov r13d, ebx
    shr rbx, 32
    lea rax, [rip + table]
    movsxd rcx, dword ptr [rax + rbx * 4]
    add rax, rcx
    jmp rax
    table:
    {table}
    {chr(10).join(cases)}
    .section .note.GNU-stack, "", @progbits
    """


def build(engine: str, gcc: str = "gcc") -> bytes:
    """Return the flat program for an engine."""
    with tempfile.TemporaryDirectory() as folder:
        text, elf, flat = (Path(folder, f"hostile.{kind}") for kind in ("S", "elf", "bin"))
        text.write_text(source(engine))
        link = (*GUEST_FLAGS, f"-I{include_dir()}", f"-Wl,-T,{include_dir() / 'flat.ld'}")
        subprocess.run([gcc, *link, "-o", elf, text], check=True, capture_output=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".flat", elf, flat], check=True)
        return flat.read_bytes()


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(build(sys.argv[1]))
