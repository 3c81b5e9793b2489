/* Twelve xorshift64 generators in twelve general registers, `argument` rounds; no floating point.
 * Result: the twelve states. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

.macro EACH_LANE operation
    .irp lane, rbx, rbp, rsi, rdx, r8, r9, r10, r11, r12, r13, r14, r15
        \operation \lane
    .endr
.endm

.macro SEED_LANE lane
    SPLITMIX rax, \lane, rcx
    or \lane, 1 /* xorshift stays at 0 once there */
.endm

.macro STEP_LANE lane
    mov rax, \lane
    shl rax, 13
    xor \lane, rax
    mov rax, \lane
    shr rax, 7
    xor \lane, rax
    mov rax, \lane
    shl rax, 17
    xor \lane, rax
.endm

.macro STORE_LANE lane
    mov [rax], \lane
    add rax, 8
.endm

FPSTATE_ENTRY
    mov rax, [rdi + FPSTATE_SEED]
    EACH_LANE SEED_LANE
    mov rcx, [rdi + FPSTATE_ARGUMENT]
    test rcx, rcx
    jz 2f
1:
    EACH_LANE STEP_LANE
    dec rcx
    jnz 1b
2:
    lea rax, [rdi + FPSTATE_RESULT]
    EACH_LANE STORE_LANE
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 12 * 8
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .note.GNU-stack, "", @progbits
