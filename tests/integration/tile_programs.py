"""Guests that use tiles in ways that their programs do not show: in code that they make, and by XRSTOR."""

from __future__ import annotations

from fpstate.arch import Component, Cpu, Layout
from fpstate.program.block import RESULT, RESULT_SIZE, YIELD

FINISH = "mov eax, 0; call gs:[0]\n"
LEAVE_AND_GO_ON = f"mov eax, {YIELD}; call gs:[0]\n"
PORT_AND_GO_ON = f"mov eax, {YIELD}; out 0xF5, eax\n"
FAULT = "ud2\n"
RELEASE = "tilerelease\n"

_CONFIGURATION = """
    mov byte ptr [rax], 1
    mov word ptr [rax + 16], 64
    mov byte ptr [rax + 48], 16
"""
"""Palette 1, and tmm0 with 16 rows of 64 bytes."""
_PREPARED = f"""
    sub rsp, 4096
    and rsp, -64
    mov rax, rsp
    {_CONFIGURATION}
"""
CONFIGURED = _PREPARED + "    ldtilecfg [rax]\n"
"""Load a configuration, in code that shows it."""
MADE = f"""
    {_PREPARED}
    mov edx, 0xb6871d3b
    not edx
    mov dword ptr [rip + made], edx
    jmp made
made:
    .byte 0x90, 0x90, 0x90, 0x90, 0x00
"""
"""Make ``ldtilecfg [rax]`` and run it."""
ERASED = MADE + "    mov dword ptr [rip + made], 0x90909090\n"
USE = """
    mov rsi, rsp
    mov ecx, 1024
fill:
    mov byte ptr [rsi + rcx - 1], 0x5a
    loop fill
    mov ecx, 64
    tileloadd tmm0, [rsi + rcx]
"""
"""Put 1024 bytes of 5AH into tmm0."""
STORE = """
    add rsi, 1024
    mov ecx, 64
    tilestored [rsi + rcx], tmm0
"""
COUNT = f"""
    mov ecx, 1024
    xor edx, edx
count:
    cmp byte ptr [rsi + rcx - 1], 0x5a
    setne al
    movzx eax, al
    add edx, eax
    loop count
    mov qword ptr [rdi + {RESULT}], rdx
    mov qword ptr [rdi + {RESULT_SIZE}], 8
"""
"""Result: how many bytes of what was stored are wrong."""
LOOK = STORE + COUNT
NOT_A_BREAKPOINT = "    mov rcx, 500000\n    jmp 1f\n    .byte 0xCC\n1:  loop 1b\n"
"""Some 1000 us on an instruction behind a byte that could be INT3."""


def spin(rounds: int) -> str:
    """Return a loop of so many rounds; 0: for ever."""
    return f"mov rcx, {rounds}\n1: dec rcx\n jnz 1b\n" if rounds else "1: jmp 1b\n"


def restored(mask: int) -> str:
    """Return code that loads a configuration, and tiles of zeros where ``mask`` has them, by XRSTOR."""
    layout = Layout.standard(Cpu.host(), Cpu.host().enabled_xcr0)
    return f"""
    sub rsp, 12288
    and rsp, -64
    lea rax, [rsp + {layout.place(Component.TILECFG).offset}]
    {_CONFIGURATION}
    mov qword ptr [rsp + 512], {mask}
    mov eax, {mask}
    xor edx, edx
    xrstor64 [rsp]
"""
