/* Pi by Gauss and Legendre in the x87 unit, 64-bit significands, all eight stack registers in use.
 *
 * Each of `argument` rounds starts from another of 16 scales, which cancel but for rounding, and
 * adds its pi to two accumulators that stay on the stack.
 * Result: last pi, alternating sum, sum (16 bytes each, 10 used), rounds. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define PI (FPSTATE_RESULT + 0)
#define ALTERNATING (FPSTATE_RESULT + 16)
#define SUM (FPSTATE_RESULT + 32)
#define ROUNDS (FPSTATE_RESULT + 48)
#define SCALE FPSTATE_INPUT

FPSTATE_ENTRY
    .irp offset, PI, ALTERNATING, SUM
        mov qword ptr [rdi + \offset], 0
        mov qword ptr [rdi + \offset + 8], 0
    .endr
    fldz
    fldz                        /* alternating, sum */
    xor r9d, r9d
.Lround:
    cmp r9, [rdi + FPSTATE_ARGUMENT]
    je .Ldone
    mov r10, r9
    and r10d, 15
    movabs rax, GOLDEN_GAMMA
    imul r10, rax
    add r10, [rdi + FPSTATE_SEED]
    SPLITMIX r10, rax, rdx
    shr rax, 1
    bts rax, 62                 /* 63 bits: exact in the x87 format */
    mov [rdi + SCALE], rax

    fild qword ptr [rdi + SCALE] /* a */
    fld st(0)
    fmul st(0), st(0)           /* a*a, a */
    fld st(0)
    fmul dword ptr [rip + half]
    fsqrt                       /* b, a*a, a */
    fxch st(1)
    fmul dword ptr [rip + quarter] /* t, b, a */
    fld1                        /* p, t, b, a, alternating, sum */
    mov ecx, 6                  /* two more than needed to converge: they only add work */
.Literation:
    fld st(3)
    fadd st(0), st(3)
    fmul dword ptr [rip + half] /* a', p, t, b, a */
    fld st(4)
    fsub st(0), st(1)
    fmul st(0), st(0)
    fmul st(0), st(2)           /* p*(a-a')^2, a', p, t, b, a: the stack is full */
    fsubp st(3), st(0)          /* a', p, t', b, a */
    fxch st(4)
    fmul st(0), st(3)
    fsqrt
    fstp st(3)                  /* p, t', b', a' */
    fadd st(0), st(0)
    dec ecx
    jnz .Literation

    fstp st(0)
    fxch st(2)
    faddp st(1), st(0)
    fmul st(0), st(0)           /* (a+b)^2, t */
    fxch st(1)
    fadd st(0), st(0)
    fadd st(0), st(0)
    fdivp st(1), st(0)          /* pi, alternating, sum */
    fld st(0)
    fstp tbyte ptr [rdi + PI]
    fadd st(2), st(0)
    fsubrp st(1), st(0)         /* pi - alternating, sum */
    inc r9
    jmp .Lround
.Ldone:
    fstp tbyte ptr [rdi + ALTERNATING]
    fstp tbyte ptr [rdi + SUM]
    mov [rdi + ROUNDS], r9
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 56
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .rodata
.balign 4
half:
    .float 0.5
quarter:
    .float 0.25

.section .note.GNU-stack, "", @progbits
