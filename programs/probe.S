/* What a fresh context starts with: stores every register before anything changes it.
 *
 * Bit 0 of `argument` chooses vector registers 0-15 (0) or 16-31 (1), as the result area does not
 * hold all 32. Result: which half, rflags, 16 general registers in encoding order, the word at
 * the top of the stack, MXCSR, FNSAVE image (108 bytes), 4 spare, k0-k7, 16 vectors of 64 bytes. */
#include "fpstate_guest.h"

.intel_syntax noprefix

#define HALF (FPSTATE_RESULT + 0)
#define RFLAGS (FPSTATE_RESULT + 8)
#define GENERAL (FPSTATE_RESULT + 16)
#define RETURN_SLOT (FPSTATE_RESULT + 144)
#define CONTROL (FPSTATE_RESULT + 152)
#define X87 (FPSTATE_RESULT + 160)
#define OPMASK (FPSTATE_RESULT + 272)
#define VECTOR (FPSTATE_RESULT + 384)
#define SIZE (384 + 16 * 64)

FPSTATE_ENTRY
    mov [rdi + GENERAL + 0], rax
    mov [rdi + GENERAL + 8], rcx
    mov [rdi + GENERAL + 16], rdx
    mov [rdi + GENERAL + 24], rbx
    mov [rdi + GENERAL + 32], rsp
    mov [rdi + GENERAL + 40], rbp
    mov [rdi + GENERAL + 48], rsi
    mov [rdi + GENERAL + 56], rdi
    .irp index, 8, 9, 10, 11, 12, 13, 14, 15
        mov [rdi + GENERAL + 8 * \index], r\index
    .endr
    mov rax, [rsp]
    mov [rdi + RETURN_SLOT], rax
    pushfq
    pop [rdi + RFLAGS]
    stmxcsr [rdi + CONTROL]
    mov dword ptr [rdi + CONTROL + 4], 0

    mov eax, [rdi + FPSTATE_ARGUMENT]
    and eax, 1
    mov [rdi + HALF], rax
    mov ecx, [rdi + FPSTATE_FEATURES]

    test ecx, FPSTATE_OPMASK
    jz .Lno_opmask
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7
        kmovq [rdi + OPMASK + 8 * \index], k\index
    .endr
.Lno_opmask:
    test ecx, FPSTATE_ZMM_HI256
    jnz .Lzmm
    test eax, eax
    jnz .Lstored
    test ecx, FPSTATE_AVX
    jnz .Lymm
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movups [rdi + VECTOR + 64 * \index], xmm\index
    .endr
    jmp .Lstored
.Lymm:
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovups [rdi + VECTOR + 64 * \index], ymm\index
    .endr
    jmp .Lstored
.Lzmm:
    test eax, eax
    jnz .Lupper_half
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovups [rdi + VECTOR + 64 * \index], zmm\index
    .endr
    jmp .Lstored
.Lupper_half:
    .irp index, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovups [rdi + VECTOR + 64 * (\index - 16)], zmm\index
    .endr
.Lstored:
    fnsave [rdi + X87]          /* last: it resets the unit */
    mov dword ptr [rdi + X87 + 108], 0
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], SIZE
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .note.GNU-stack, "", @progbits
