/* The same sums under every rounding control, in SSE and in the x87 unit.
 *
 * The seed makes 32 terms: a normal a[i] and a subnormal d[i]. Each configuration loads its
 * control word once, then makes `argument` passes over the terms with
 *   SSE  s += a[i]          from 0: RC
 *        t += d[i]          from 2^-1018, stays normal: DAZ
 *        u += a[i] * 2^-1022   subnormal products, their bits added as integers: RC and FTZ
 *   x87  s += a[i]; t = t * c + a[i]      from 0: RC and PC
 * and folds the bits at the end of each pass. A control word that gets lost changes the sums.
 * SSE: 16 configurations, RC (outer) x {-, DAZ, FTZ, FTZ+DAZ}; x87: 12, RC (outer) x PC 24, 53, 64.
 * Result: 16 folds of 16 bytes with MXCSR as read back (8), 12 folds of 16 bytes with FCW (8),
 * that is 28 entries of 24 bytes, and the passes. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define TERMS 32
#define NORMAL FPSTATE_INPUT
#define SUBNORMAL (FPSTATE_INPUT + 8 * TERMS)
#define CONTROL (FPSTATE_INPUT + 16 * TERMS)
#define SPILL (FPSTATE_INPUT + 16 * TERMS + 16)
#define ENTRY_SIZE 24

FPSTATE_ENTRY
    mov r8, [rdi + FPSTATE_SEED]
    xor ecx, ecx
1:
    SPLITMIX r8, rax, rdx
    mov rdx, rax
    shr rdx, 59                 /* exponents 991 to 1022: below 1, 32 binades wide */
    add edx, 991
    shl rdx, 52
    movabs r9, 0x800FFFFFFFFFFFFF
    and rax, r9
    or rax, rdx
    mov [rdi + 8 * rcx + NORMAL], rax
    SPLITMIX r8, rax, rdx
    and rax, r9                 /* exponent 0 */
    mov [rdi + 8 * rcx + SUBNORMAL], rax
    inc ecx
    cmp ecx, TERMS
    jne 1b

    lea rsi, [rdi + FPSTATE_RESULT]
    xor r8d, r8d                /* bits 0-1 DAZ and FTZ, bits 2-3 RC */
.Lsse:
    mov eax, r8d
    and eax, 1
    shl eax, 6                  /* DAZ */
    mov edx, r8d
    and edx, 2
    shl edx, 14                 /* FTZ */
    or eax, edx
    mov edx, r8d
    and edx, 12
    shl edx, 11                 /* RC */
    or eax, edx
    or eax, 0x1F80
    mov [rdi + CONTROL], eax
    ldmxcsr [rdi + CONTROL]
    pxor xmm15, xmm15           /* fold */
    movq xmm7, [rip + smallest_normal]
    mov r9, [rdi + FPSTATE_ARGUMENT]
    test r9, r9
    jz .Lsse_done
.Lsse_pass:
    pxor xmm0, xmm0
    movq xmm1, [rip + sixteen_smallest]
    pxor xmm2, xmm2
    xor ecx, ecx
.Lsse_term:
    movq xmm3, [rdi + 8 * rcx + NORMAL]
    addsd xmm0, xmm3
    movq xmm4, [rdi + 8 * rcx + SUBNORMAL]
    addsd xmm1, xmm4
    mulsd xmm3, xmm7
    paddq xmm2, xmm3
    inc ecx
    cmp ecx, TERMS
    jne .Lsse_term
    punpcklqdq xmm0, xmm1       /* s, t */
    punpcklqdq xmm2, xmm2       /* u, u */
    .irp register, xmm0, xmm2
        movdqa xmm3, xmm15
        psllq xmm15, 9
        psrlq xmm3, 55
        por xmm15, xmm3
        paddq xmm15, \register
    .endr
    dec r9
    jnz .Lsse_pass
.Lsse_done:
    movdqu [rsi], xmm15
    stmxcsr [rdi + CONTROL]
    mov eax, [rdi + CONTROL]
    and eax, 0xFFFFFFC0         /* without the exception flags */
    mov [rsi + 16], rax
    add rsi, ENTRY_SIZE
    inc r8d
    cmp r8d, 16
    jne .Lsse
    mov dword ptr [rdi + CONTROL], 0x1F80
    ldmxcsr [rdi + CONTROL]

    xor r8d, r8d                /* RC * 3 + PC */
.Lx87:
    mov eax, r8d
    xor edx, edx
    mov ecx, 3
    div ecx                     /* eax RC, edx 0, 1, 2 */
    shl eax, 10
    test edx, edx
    setnz cl                    /* PC is coded 0, 2, 3 */
    movzx ecx, cl
    add edx, ecx
    shl edx, 8
    or eax, edx
    or eax, 0x7F
    mov [rdi + CONTROL], ax
    fldcw [rdi + CONTROL]
    xor r10d, r10d              /* fold: r10 s, r11 t */
    xor r11d, r11d
    mov r9, [rdi + FPSTATE_ARGUMENT]
    test r9, r9
    jz .Lx87_done
.Lx87_pass:
    fldz
    fldz                        /* s, t */
    xor ecx, ecx
.Lx87_term:
    fld qword ptr [rdi + 8 * rcx + NORMAL]
    fadd st(1), st(0)
    fxch st(2)                  /* t, s, a */
    fmul qword ptr [rip + factor]
    faddp st(2), st(0)          /* s, t */
    inc ecx
    cmp ecx, TERMS
    jne .Lx87_term
    fstp tbyte ptr [rdi + SPILL]
    fstp tbyte ptr [rdi + SPILL + 16]
    rol r10, 9                  /* significand, then sign and exponent */
    add r10, [rdi + SPILL]
    rol r10, 9
    movzx eax, word ptr [rdi + SPILL + 8]
    add r10, rax
    rol r11, 9
    add r11, [rdi + SPILL + 16]
    rol r11, 9
    movzx eax, word ptr [rdi + SPILL + 24]
    add r11, rax
    dec r9
    jnz .Lx87_pass
.Lx87_done:
    mov [rsi], r10
    mov [rsi + 8], r11
    fnstcw [rdi + CONTROL]
    movzx eax, word ptr [rdi + CONTROL]
    mov [rsi + 16], rax
    add rsi, ENTRY_SIZE
    inc r8d
    cmp r8d, 12
    jne .Lx87

    mov rax, [rdi + FPSTATE_ARGUMENT]
    mov [rsi], rax
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 28 * ENTRY_SIZE + 8
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .rodata
.balign 8
sixteen_smallest: /* 2^-1018 */
    .quad 0x0050000000000000
smallest_normal: /* 2^-1022 */
    .quad 0x0010000000000000
factor:
    .double 0.7

.section .note.GNU-stack, "", @progbits
