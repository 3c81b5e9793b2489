# The portable core: XSAVEC and XRSTOR, or XSAVE and XRSTOR where XSAVEC is missing. core.h says what each takes.

#include "offsets.h"

    .section fpstate_switching, "ax", @progbits
    .globl portable_save, portable_load, portable_exchange
    .globl standard_save, standard_exchange
    .globl initial_legacy, control_exchange
    .hidden portable_save, portable_load, portable_exchange
    .hidden standard_save, standard_exchange
    .hidden initial_legacy, control_exchange

    .macro MASK from
    mov     \from, %eax
    mov     4 + \from, %edx
    .endm

# XSAVE counts XMM alone in XSTATE_BV[1], and writes MXCSR all the same
    .macro COUNT_MXCSR
    cmpl    $0x1F80, 24(%rdi)
    je      1f
    orq     $2, 512(%rdi)
1:
    .endm

# What is initial in the registers and in the target is left alone: XSTATE_BV tells both. x87 alone costs XRSTOR a fifth.
    .macro LOAD_EITHER
    mov     512(%rdi), %rax
    mov     %rax, (%r8)
    or      512(%rsi), %rax
    and     ARRANGEMENT_MANAGED(%r10), %rax
    mov     %rax, %rdx
    shr     $32, %rdx
    xrstor64 (%rsi)
    .endm

    .p2align 6
portable_exchange:
    mov     %rcx, %r10
    mov     %rdx, %r9
    MASK    ARRANGEMENT_ROOM(%r9)
    xsavec64 (%rdi)
    LOAD_EITHER
    xor     %eax, %eax
    ret

    .p2align 6
portable_save:
    MASK    ARRANGEMENT_ROOM(%rsi)
    xsavec64 (%rdi)
    mov     512(%rdi), %rax
    ret

    .p2align 6
portable_load:
    MASK    ARRANGEMENT_MANAGED(%rsi)
    xrstor64 (%rdi)
    ret

    .p2align 6
standard_exchange:
    mov     %rcx, %r10
    mov     %rdx, %r9
    MASK    ARRANGEMENT_ROOM(%r9)
    xsave64 (%rdi)
    COUNT_MXCSR
    LOAD_EITHER
    xor     %eax, %eax
    ret

    .p2align 6
standard_save:
    MASK    ARRANGEMENT_ROOM(%rsi)
    xsave64 (%rdi)
    COUNT_MXCSR
    mov     512(%rdi), %rax
    ret

# void control_exchange(struct control *from, const struct control *to): MXCSR and FCW, all that a function call keeps
    .p2align 6
control_exchange:
    stmxcsr (%rdi)
    fnstcw  4(%rdi)
    ldmxcsr (%rsi)
    fldcw   4(%rsi)
    ret

    .section .rodata
    .p2align 6
initial_legacy:
    .short  0x37F
    .zero   22
    .long   0x1F80
    .zero   484
    .section .note.GNU-stack, "", @progbits
