/* Three bodies in a plane, SSE2 doubles, the whole system in xmm0 to xmm15.
 *
 * Each of `argument` episodes starts from the seed's positions, velocities and masses, makes
 * 512 steps and folds the final bits into xmm15, which lives through all episodes.
 * Result: the fold (16 bytes), positions and velocities (6 x 16), episodes. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define STEPS 512
#define START FPSTATE_INPUT /* 6 vectors and 3 masses, 16 bytes each */

/* two numbers, each (53-bit integer) * scale - shift */
.macro MAKE_VECTOR index, scale, shift
    SPLITMIX r8, rax, rdx
    shr rax, 11
    cvtsi2sd xmm0, rax
    SPLITMIX r8, rax, rdx
    shr rax, 11
    cvtsi2sd xmm1, rax
    unpcklpd xmm0, xmm1
    mulpd xmm0, [rip + \scale]
    subpd xmm0, [rip + \shift]
    movapd [rdi + START + 16 * \index], xmm0
.endm

.macro MAKE_MASS index
    SPLITMIX r8, rax, rdx
    shr rax, 11
    cvtsi2sd xmm0, rax
    unpcklpd xmm0, xmm0
    mulpd xmm0, [rip + to_1]
    subpd xmm0, [rip + minus_half]
    movapd [rdi + START + 16 * \index], xmm0
.endm

.macro ATTRACT pi, pj, vi, vj, mi, mj
    movapd xmm11, \pi
    subpd xmm11, \pj
    movapd xmm12, xmm11
    mulpd xmm12, xmm12
    movapd xmm13, xmm12
    shufpd xmm13, xmm13, 1
    addpd xmm12, xmm13          /* squared distance, in both halves */
    addpd xmm12, xmm9
    sqrtpd xmm13, xmm12
    mulpd xmm13, xmm12
    movapd xmm14, xmm10
    divpd xmm14, xmm13
    mulpd xmm11, xmm14
    movapd xmm12, xmm11
    mulpd xmm12, \mj
    subpd \vi, xmm12
    mulpd xmm11, \mi
    addpd \vj, xmm11
.endm

.macro MOVE position, velocity
    movapd xmm11, xmm10
    mulpd xmm11, \velocity
    addpd \position, xmm11
.endm

.macro FOLD register
    movdqa xmm11, xmm15
    psllq xmm15, 7
    psrlq xmm11, 57
    por xmm15, xmm11
    paddq xmm15, \register
.endm

FPSTATE_ENTRY
    mov r8, [rdi + FPSTATE_SEED]
    .irp index, 0, 1, 2
        MAKE_VECTOR \index, to_4, two
    .endr
    .irp index, 3, 4, 5
        MAKE_VECTOR \index, to_1, half
    .endr
    .irp index, 6, 7, 8
        MAKE_MASS \index
    .endr
    movapd xmm9, [rip + softening]
    movapd xmm10, [rip + time_step]
    pxor xmm15, xmm15
    mov r9, [rdi + FPSTATE_ARGUMENT]
    .irp index, 0, 1, 2, 3, 4, 5
        pxor xmm\index, xmm\index
    .endr
    test r9, r9
    jz .Ldone
.Lepisode:
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8
        movapd xmm\index, [rdi + START + 16 * \index]
    .endr
    mov ecx, STEPS
.Lstep:
    ATTRACT xmm0, xmm1, xmm3, xmm4, xmm6, xmm7
    ATTRACT xmm0, xmm2, xmm3, xmm5, xmm6, xmm8
    ATTRACT xmm1, xmm2, xmm4, xmm5, xmm7, xmm8
    MOVE xmm0, xmm3
    MOVE xmm1, xmm4
    MOVE xmm2, xmm5
    dec ecx
    jnz .Lstep
    .irp index, 0, 1, 2, 3, 4, 5
        FOLD xmm\index
    .endr
    dec r9
    jnz .Lepisode
.Ldone:
    movdqa [rdi + FPSTATE_RESULT], xmm15
    .irp index, 0, 1, 2, 3, 4, 5
        movapd [rdi + FPSTATE_RESULT + 16 + 16 * \index], xmm\index
    .endr
    mov rax, [rdi + FPSTATE_ARGUMENT]
    mov [rdi + FPSTATE_RESULT + 112], rax
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 120
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .rodata
.balign 16
to_4:
    .double 4.44089209850062616169452667236328125e-16, 4.44089209850062616169452667236328125e-16
to_1:
    .double 1.1102230246251565404236316680908203125e-16, 1.1102230246251565404236316680908203125e-16
two:
    .double 2.0, 2.0
half:
    .double 0.5, 0.5
minus_half:
    .double -0.5, -0.5
softening:
    .double 0.01, 0.01
time_step:
    .double 0.0078125, 0.0078125

.section .note.GNU-stack, "", @progbits
