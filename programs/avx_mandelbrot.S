/* Mandelbrot counts with AVX: 256-bit doubles, no FMA, two vectors of four points at a time.
 *
 * Each of `argument` episodes draws the seed's tile of 16 x 16 points, up to 64 iterations each;
 * counts, constants and the fold over all episodes stay in ymm registers.
 * Result: the fold (4 doubles), the counts of the last row (16 doubles), episodes. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define ITERATIONS 64
#define ROWS 16
#define ROW FPSTATE_INPUT /* counts of the row that is being drawn */

/* ymm0-5: zr zi count of either vector; ymm6, 7 cr; ymm8 ci; ymm9 four; ymm10 one; ymm11 fold;
 * ymm12-15 scratch */

/* One iteration of the four points in zr, zi; those that have escaped do not count any more. */
.macro ITERATE zr, zi, count, cr
    vmulpd ymm12, \zr, \zr
    vmulpd ymm13, \zi, \zi
    vaddpd ymm14, ymm12, ymm13
    vcmppd ymm14, ymm14, ymm9, 1        /* |z|^2 < 4; once false it stays false, infinities and NaNs included */
    vandpd ymm15, ymm14, ymm10
    vaddpd \count, \count, ymm15
    vmulpd \zi, \zr, \zi
    vaddpd \zi, \zi, \zi
    vaddpd \zi, \zi, ymm8
    vsubpd \zr, ymm12, ymm13
    vaddpd \zr, \zr, \cr
.endm

FPSTATE_ENTRY
    /* the corner: (-7/8 + 20 bits * 2^-23, 1/16 + 20 bits * 2^-23), exact, where counts vary */
    mov r8, [rdi + FPSTATE_SEED]
    SPLITMIX r8, rax, rdx
    shr rax, 44
    vxorpd xmm0, xmm0, xmm0
    vcvtsi2sd xmm0, xmm0, rax
    vmulsd xmm0, xmm0, [rip + to_eighth]
    vaddsd xmm0, xmm0, [rip + left]
    vmovsd [rdi + ROW + 128], xmm0
    SPLITMIX r8, rax, rdx
    shr rax, 44
    vcvtsi2sd xmm0, xmm0, rax
    vmulsd xmm0, xmm0, [rip + to_eighth]
    vaddsd xmm0, xmm0, [rip + bottom]
    vmovsd [rdi + ROW + 136], xmm0

    vbroadcastsd ymm9, [rip + four]
    vbroadcastsd ymm10, [rip + one]
    vxorpd ymm11, ymm11, ymm11
    mov r9, [rdi + FPSTATE_ARGUMENT]
    test r9, r9
    jz .Ldone
.Lepisode:
    vbroadcastsd ymm8, [rdi + ROW + 136]
    mov r10d, ROWS
.Lrow:
    xor r11d, r11d              /* byte offset of the column: 0, then 64 */
.Lcolumns:
    lea rax, [rip + columns]
    vbroadcastsd ymm12, [rdi + ROW + 128]
    vaddpd ymm6, ymm12, [rax + r11]
    vaddpd ymm7, ymm12, [rax + r11 + 32]
    .irp index, 0, 1, 2, 3, 4, 5
        vxorpd ymm\index, ymm\index, ymm\index
    .endr
    mov ecx, ITERATIONS
.Literation:
    ITERATE ymm0, ymm1, ymm2, ymm6
    ITERATE ymm3, ymm4, ymm5, ymm7
    dec ecx
    jnz .Literation
    vmovupd [rdi + ROW + r11], ymm2
    vmovupd [rdi + ROW + r11 + 32], ymm5
    /* fold = (fold * 31 + counts) mod 2^40, in doubles: exact as all stays below 2^53 */
    .irp index, 2, 5
        vmulpd ymm11, ymm11, [rip + thirty_one]
        vaddpd ymm11, ymm11, ymm\index
        vmulpd ymm12, ymm11, [rip + to_fraction]
        vroundpd ymm12, ymm12, 3 /* toward zero */
        vmulpd ymm12, ymm12, [rip + modulus]
        vsubpd ymm11, ymm11, ymm12
    .endr
    add r11d, 64
    cmp r11d, 128
    jne .Lcolumns
    vbroadcastsd ymm12, [rip + step]
    vaddpd ymm8, ymm8, ymm12
    dec r10d
    jnz .Lrow
    dec r9
    jnz .Lepisode
.Ldone:
    vmovupd [rdi + FPSTATE_RESULT], ymm11
    .irp index, 0, 1, 2, 3
        vmovupd ymm0, [rdi + ROW + 32 * \index]
        vmovupd [rdi + FPSTATE_RESULT + 32 + 32 * \index], ymm0
    .endr
    mov rax, [rdi + FPSTATE_ARGUMENT]
    mov [rdi + FPSTATE_RESULT + 160], rax
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 168
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .rodata
.balign 32
columns: /* 16 columns, 2^-7 apart */
    .double 0.0, 0.0078125, 0.015625, 0.0234375, 0.03125, 0.0390625, 0.046875, 0.0546875
    .double 0.0625, 0.0703125, 0.078125, 0.0859375, 0.09375, 0.1015625, 0.109375, 0.1171875
thirty_one:
    .double 31.0, 31.0, 31.0, 31.0
to_fraction: /* 2^-40 */
    .quad 0x3D70000000000000, 0x3D70000000000000, 0x3D70000000000000, 0x3D70000000000000
modulus: /* 2^40 */
    .double 1099511627776.0, 1099511627776.0, 1099511627776.0, 1099511627776.0
to_eighth: /* 2^-23 */
    .quad 0x3E80000000000000
left:
    .double -0.875
bottom:
    .double 0.0625
four:
    .double 4.0
one:
    .double 1.0
step:
    .double 0.0078125

.section .note.GNU-stack, "", @progbits
