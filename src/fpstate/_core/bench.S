# The measures that a switch is held to: the instructions made for it, in a loop over slots, and nothing else.
#
# void NAME(char *slots, uint64_t stride, const uint32_t *order, uint64_t steps, uint64_t mask):
# from slot order[0] to order[1], ... order[steps]; each step saves the one and restores the other.

    .text
    .globl walk_xsavec, walk_fxsave
    .hidden walk_xsavec, walk_fxsave

    .macro walk name, save, restore
\name:
    mov     %rcx, %r9
    mov     %r8d, %eax
    mov     (%rdx), %r10d
    imul    %rsi, %r10
    mov     %rdx, %rcx
    mov     %r8, %rdx
    shr     $32, %rdx
    add     %rdi, %r10
    \restore (%r10)
    test    %r9, %r9
    jz      2f
    .balign 32
1:  mov     4(%rcx), %r11d
    add     $4, %rcx
    imul    %rsi, %r11
    add     %rdi, %r11
    \save   (%r10)
    \restore (%r11)
    mov     %r11, %r10
    dec     %r9
    jnz     1b
2:  \save   (%r10)
    ret
    .endm

    walk    walk_xsavec, xsavec64, xrstor64
    walk    walk_fxsave, fxsave64, fxrstor64

    .section .note.GNU-stack, "", @progbits
