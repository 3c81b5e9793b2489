/* Every instruction that is recorded, each in a stub of its own, which the child jumps to with
 *
 *   RDI  the first operand, an address         RSI, EDX:EAX  the second: an address, a mask, a value
 *   RCX  the third: a length, a number         RBX           what this processor has (HAS_...)
 *
 * and which goes on at `after`. Up to there no memory is touched but the operand: the instruction may have closed
 * protection key 0 by PKRU, and with it the stack. A handler of an exception goes on at `after` too. What a stub reads
 * into registers it leaves in R10. The table of stubs (name, address) goes to the tracer of all this, in Python. */
#include "child.h"

    .text
    .globl perform, after, first_stub, last_stub, saved_stack, seen, frame64, frame32, restore_signal

/* void perform(stub, first, second, third, has) */
    .balign 16
perform:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, saved_stack
    mov %r8, %rbx
    mov %rdi, %r11
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %esi, %eax
    shr $32, %rdx
    xor %r10d, %r10d
    jmp *%r11

first_stub:
.macro stub name:req, first:req, second, third, fourth
    .balign 16
701:
    \first
    \second
    \third
    \fourth
    jmp after
    .pushsection stubs, "a"
702:
    .ascii "\name"
    .space 24 - (. - 702b)
    .quad 701b
    .popsection
.endm
.macro stub32 name:req, code:req
    stub "\name@32", enter32, "\code", leave32
.endm
/* Into the code segment of 32-bit programs; the stack lies below 4 GiB, as all else does here. */
.macro enter32
    push $CODE_OF_32_BITS
    push $703f
    lretq
    .code32
703:
.endm
.macro leave32
    ljmp $CODE_OF_64_BITS, $after
    .code64
.endm
.macro return64
    mov %rdi, frame64 + FPSTATE_64
    mov %rbx, frame64 + BX_64
    mov %rsp, frame64 + SP_64
    mov $frame64 + CONTEXT_64, %rsp
    mov $SYSCALL_RT_SIGRETURN, %eax
    syscall
.endm
.macro return32
    mov %edi, frame32 + FPSTATE_32
    mov %ebx, frame32 + BX_32
    mov %esp, frame32 + SP_32
    mov $frame32 + CONTEXT_32, %rsp
    mov $SYSCALL32_SIGRETURN, %eax
    int $0x80
.endm

    /* The child's own means: bytes from one place to another, bytes of one value, a system call. */
    stub "copy", "rep movsb"
    stub "fill", "rep stosb"
    stub "syscall", "mov %ecx, %eax", "syscall", "mov %rax, %r10"

    .irp name, xsave, xsave64, xsavec, xsavec64, xsaveopt, xsaveopt64, xsaves64, xrstor, xrstor64, xrstors64, \
               fxsave, fxsave64, fxrstor, fxrstor64
    stub "\name", "\name (%rdi)"
    .endr
    .irp name, fxsave, xsave, xsavec, xsaveopt, fxrstor, xrstor
    stub32 "\name", "\name (%edi)"
    .endr
    .irp name, vzeroupper, vzeroall, fninit, fnclex, emms, tilerelease
    stub "\name", "\name"
    .endr
    .irp name, fldcw, ldmxcsr, ldtilecfg, sttilecfg, fldt
    stub "\name", "\name (%rdi)"
    .endr
    stub "fstp", "fstp %st(0)"
    .irp name, fnstcw, fnstsw, stmxcsr
    stub "\name", "\name (%rdi)", "mov (%rdi), %r10d"
    .endr
    stub "xgetbv", "xgetbv", "shl $32, %rdx", "lea (%rdx, %rax), %r10"
    stub "rdpkru", "rdpkru", "mov %eax, %r10d"
    stub "wrpkru", "wrpkru"

    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    stub "kmovq.\n", "kmovq (%rdi), %k\n"
    stub "movq.\n", "movq (%rdi), %mm\n"
    stub "tilezero.\n", "tilezero %tmm\n"
    stub "tileloadd.\n", "tileloadd (%rdi, %rsi), %tmm\n"
    stub "tilestored.\n", "tilestored %tmm\n, (%rdi, %rsi)"
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub "movups.\n", "movups (%rdi), %xmm\n"
    stub "vmovups128.\n", "vmovups (%rdi), %xmm\n"
    stub "vmovups256.\n", "vmovups (%rdi), %ymm\n"
    stub "vmovups512.\n", "vmovups (%rdi), %zmm\n"
    stub "vpxor.\n", "vpxor %xmm\n, %xmm\n, %xmm\n"
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    stub "vmovups512.\n", "vmovups (%rdi), %zmm\n"
    stub "vpxor.\n", "vpxorq %zmm\n, %zmm\n, %zmm\n"
    .endr

    /* Returns from signals that never came; both go on at `after`. RDI: the frame's XSAVE image, or 0. */
    stub "sigreturn64", return64
    stub "sigreturn32", return32

    .balign 16
after:
    xor %r8d, %r8d
    test $HAS_XGETBV1, %bl
    jz 1f
    mov $1, %ecx
    xgetbv
    shl $32, %rdx
    lea (%rdx, %rax), %r8
1:  xor %r9d, %r9d
    test $HAS_PKRU, %bl
    jz 2f
    xor %ecx, %ecx
    rdpkru
    mov %eax, %r9d
    test $3, %al
    jz 2f
    and $-4, %eax /* open key 0; RDPKRU left 0 in EDX */
    wrpkru
2:  mov saved_stack, %rsp
    mov %r10, seen
    mov %r8, seen + 8
    mov %r9, seen + 16
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
last_stub:

    .balign 16
restore_signal:
    mov $SYSCALL_RT_SIGRETURN, %eax
    syscall

    .globl _start
_start:
    mov %rsp, %rdi
    mov $stack_end, %rsp
    call child_main
    ud2

    .bss
    .balign 64
frame64:
    .space FRAME_SIZE
frame32:
    .space FRAME_SIZE
stack:
    .space 65536
stack_end:
saved_stack:
    .space 8
seen:
    .space 24
    .section .note.GNU-stack, "", @progbits
