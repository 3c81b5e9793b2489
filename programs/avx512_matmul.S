/* A matrix product in ZMM registers: C += A x B, `argument` times, without FMA.
 *
 * A is 24 x 16 and B 16 x 8, small integers in doubles, so that every sum is exact. The 24 rows of C
 * stay in zmm8 to zmm31 from the first episode to the last.
 * Result: C row by row (24 x 8 doubles), episodes. Needs AVX512F. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define ROWS 24
#define DEPTH 16
#define COLUMNS 8

/* One row of C; the scratch register alternates so that rows do not wait for each other. */
.macro ADD_ROW row, scratch, sum
    vmulpd \scratch, zmm0, qword ptr [rsi + 8 * DEPTH * \row]{1to8}
    vaddpd \sum, \sum, \scratch
.endm

FPSTATE_ENTRY
    mov r8, [rdi + FPSTATE_SEED]
    lea r9, [rip + left]        /* A, and B right behind it */
    xor ecx, ecx
1:
    SPLITMIX r8, rax, rdx
    and eax, 15
    sub eax, 8
    vxorpd xmm0, xmm0, xmm0
    vcvtsi2sd xmm0, xmm0, eax
    vmovsd [r9 + 8 * rcx], xmm0
    inc ecx
    cmp ecx, ROWS * DEPTH + DEPTH * COLUMNS
    jne 1b

    .irp index, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vpxorq zmm\index, zmm\index, zmm\index
    .endr
    mov r10, [rdi + FPSTATE_ARGUMENT]
    test r10, r10
    jz .Ldone
.Lepisode:
    lea rsi, [rip + left]       /* walks along the columns of A */
    lea rdx, [rip + right]      /* and down the rows of B */
    mov ecx, DEPTH
.Lcolumn:
    vmovapd zmm0, [rdx]
    ADD_ROW 0, zmm1, zmm8
    ADD_ROW 1, zmm2, zmm9
    ADD_ROW 2, zmm3, zmm10
    ADD_ROW 3, zmm4, zmm11
    ADD_ROW 4, zmm5, zmm12
    ADD_ROW 5, zmm6, zmm13
    ADD_ROW 6, zmm7, zmm14
    ADD_ROW 7, zmm1, zmm15
    ADD_ROW 8, zmm2, zmm16
    ADD_ROW 9, zmm3, zmm17
    ADD_ROW 10, zmm4, zmm18
    ADD_ROW 11, zmm5, zmm19
    ADD_ROW 12, zmm6, zmm20
    ADD_ROW 13, zmm7, zmm21
    ADD_ROW 14, zmm1, zmm22
    ADD_ROW 15, zmm2, zmm23
    ADD_ROW 16, zmm3, zmm24
    ADD_ROW 17, zmm4, zmm25
    ADD_ROW 18, zmm5, zmm26
    ADD_ROW 19, zmm6, zmm27
    ADD_ROW 20, zmm7, zmm28
    ADD_ROW 21, zmm1, zmm29
    ADD_ROW 22, zmm2, zmm30
    ADD_ROW 23, zmm3, zmm31
    add rsi, 8
    add rdx, 8 * COLUMNS
    dec ecx
    jnz .Lcolumn
    dec r10
    jnz .Lepisode
.Ldone:
    .irp index, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovupd [rdi + FPSTATE_RESULT + 64 * (\index - 8)], zmm\index
    .endr
    mov rax, [rdi + FPSTATE_ARGUMENT]
    mov [rdi + FPSTATE_RESULT + 8 * ROWS * COLUMNS], rax
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 8 * ROWS * COLUMNS + 8
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.bss
.balign 64
left:
    .zero 8 * ROWS * DEPTH
right:
    .zero 8 * DEPTH * COLUMNS

.section .note.GNU-stack, "", @progbits
