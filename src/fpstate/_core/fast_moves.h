# The fast core's code, as macros: an assembly file for each instruction set makes its functions of them.
#
# Where XGETBV(1) says that a component is not in use it is initial (SDM vol. 1, 13.6): it is not stored, only
# marked absent. Where the target lacks a component that is in use it is zeroed by idioms that write no memory.
# Components without moves go through XSAVE-family instructions with a mask.
#
# \wide: 1 with AVX-512, 0 with VEX encodings alone. \sabotage: 0, or what a test's twin of the core gets wrong.

#include "offsets.h"

#define SABOTAGE_OPMASK 1
#define SABOTAGE_MXCSR 2
#define SABOTAGE_X87 4

#define X87_BIT 1
#define SSE_BIT 2
#define AVX_BIT 4
#define OPMASK_BIT 0x20
#define ZMM_HI256_BIT 0x40
#define HI16_ZMM_BIT 0x80
#define MXCSR_AT_24 24
#define XMM_AT 160
#define HEADER_BV 512
#define HEADER_XCOMP 520

# XINUSE of what the core manages, into \to; clobbers rax, rcx, rdx
.macro READ_IN_USE to, arr
    mov     $1, %ecx
    xgetbv
    shl     $32, %rdx
    or      %rdx, %rax
    and     ARRANGEMENT_MANAGED(\arr), %rax
    mov     %rax, \to
.endm

# Store what is in use (\live, a register of eight bytes with the low byte \live8) into \area; clobbers rax, rcx, rdx.
.macro STORE area, arr, live, live8, wide
    mov     ARRANGEMENT_MOVES(\arr), %rax
    not     %rax
    and     \live, %rax
    jnz     .Lextra\@
.Lmoves\@:
    mov     ARRANGEMENT_MOVES(\arr), %rcx
    and     \live, %rcx
    testb   $X87_BIT, \live8
    jnz     .Lx87\@
    testb   $SSE_BIT, \live8
    jz      .Lnosse\@
    stmxcsr MXCSR_AT_24(\area)
    mov     ARRANGEMENT_MXCSR_MASK(\arr), %eax
    mov     %eax, MXCSR_AT_24 + 4(\area)
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqa %xmm\n, XMM_AT + 16 * \n(\area)
    .endr
    jmp     .Lavx\@
.Lnosse\@:
    movl    $0x1F80, MXCSR_AT_24(\area)     # a standard-form restore reads it whatever XSTATE_BV says
    jmp     .Lavx\@
.Lx87\@:
    fxsave64 (\area)                        # XMM and MXCSR too
.Lavx\@:
    testb   $AVX_BIT, %cl
    jz      .Lopmask\@
    mov     ARRANGEMENT_AVX(\arr), %eax
    add     \area, %rax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextractf128 $1, %ymm\n, 16 * \n(%rax)
    .endr
.Lopmask\@:
.if \wide
    testb   $OPMASK_BIT, %cl
    jz      .Lzmm\@
    mov     ARRANGEMENT_OPMASK(\arr), %eax
    add     \area, %rax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq   %k\n, 8 * \n(%rax)
    .endr
.Lzmm\@:
    testb   $ZMM_HI256_BIT, %cl
    jz      .Lhi16\@
    mov     ARRANGEMENT_ZMM_HI256(\arr), %eax
    add     \area, %rax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextracti64x4 $1, %zmm\n, 32 * \n(%rax)
    .endr
.Lhi16\@:
    testb   $HI16_ZMM_BIT, %cl
    jz      .Lheader\@
    mov     ARRANGEMENT_HI16_ZMM(\arr), %eax
    add     \area, %rax
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 %zmm\n, 64 * (\n - 16)(%rax)
    .endr
.endif
.Lheader\@:
    mov     \live, HEADER_BV(\area)
    mov     ARRANGEMENT_XCOMP_BV(\arr), %rax
    mov     %rax, HEADER_XCOMP(\area)
    jmp     .Lstored\@

# XSAVEC lays out what its mask names, so it cannot add to a compacted image: it writes all of it. XSAVE can add.
.Lextra\@:
    cmpq    $0, ARRANGEMENT_XCOMP_BV(\arr)
    jne     .Lcompacted\@
    mov     %rax, %rdx
    shr     $32, %rdx
    xsave64 (\area)
    jmp     .Lmoves\@
.Lcompacted\@:
    mov     ARRANGEMENT_ROOM(\arr), %rax
    mov     %rax, %rdx
    shr     $32, %rdx
    xsavec64 (\area)
.Lstored\@:
.endm

# Load \area over registers of which \live are in use; clobbers rax, rcx, rdx and r11.
.macro LOAD area, arr, live, live8, wide, sabotage
    mov     HEADER_BV(\area), %r11
    mov     ARRANGEMENT_MOVES(\arr), %rcx
    and     %r11, %rcx
    vzeroupper
    testb   $X87_BIT, %r11b
    jnz     .Lx87\@
    testb   $X87_BIT, \live8
    jnz     .Lendx87\@
.Llegacy\@:
    testb   $SSE_BIT, %r11b
    jz      .Lzero\@
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqa XMM_AT + 16 * \n(\area), %xmm\n
    .endr
    jmp     .Lavx\@
.Lendx87\@:
.if \sabotage != SABOTAGE_X87
    fxrstor64 initial_legacy(%rip)          # FNINIT would leave the data registers
.endif
    jmp     .Llegacy\@
.Lx87\@:
    fxrstor64 (\area)
    testb   $SSE_BIT, %r11b
    jnz     .Lavx\@
.Lzero\@:
    vzeroall
.Lavx\@:
    testb   $AVX_BIT, %cl
    jz      .Lzmm\@
    mov     ARRANGEMENT_AVX(\arr), %eax
    add     \area, %rax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinsertf128 $1, 16 * \n(%rax), %ymm\n, %ymm\n
    .endr
.Lzmm\@:
.if \wide
    testb   $ZMM_HI256_BIT, %cl
    jz      .Lopmask\@
    mov     ARRANGEMENT_ZMM_HI256(\arr), %eax
    add     \area, %rax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinserti64x4 $1, 32 * \n(%rax), %zmm\n, %zmm\n
    .endr
.Lopmask\@:
    testb   $OPMASK_BIT, %cl
    jz      .Lnoopmask\@
    mov     ARRANGEMENT_OPMASK(\arr), %eax
    add     \area, %rax
    kmovq   (%rax), %k0
.if \sabotage != SABOTAGE_OPMASK
    .irp n, 1, 2, 3, 4, 5, 6, 7
    kmovq   8 * \n(%rax), %k\n
    .endr
.endif
    jmp     .Lhi16\@
.Lnoopmask\@:
    testb   $OPMASK_BIT, \live8
    jz      .Lhi16\@
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    kxorq   %k\n, %k\n, %k\n
    .endr
.Lhi16\@:
    testb   $HI16_ZMM_BIT, %cl
    jz      .Lnohi16\@
    mov     ARRANGEMENT_HI16_ZMM(\arr), %eax
    add     \area, %rax
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vmovdqu64 64 * (\n - 16)(%rax), %zmm\n
    .endr
    jmp     .Lrest\@
.Lnohi16\@:
    testb   $HI16_ZMM_BIT, \live8
    jz      .Lrest\@
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    vpxord  %zmm\n, %zmm\n, %zmm\n
    .endr
.endif
.Lrest\@:
    mov     ARRANGEMENT_MOVES(\arr), %rax
    not     %rax
    mov     %r11, %rdx
    or      \live, %rdx
    and     %rdx, %rax
    jnz     .Lextra\@
.Lmxcsr\@:
.if \sabotage != SABOTAGE_MXCSR
    testb   $SSE_BIT, %r11b
    jz      .Lnomxcsr\@
    ldmxcsr MXCSR_AT_24(\area)
    jmp     .Lloaded\@
.Lnomxcsr\@:
    ldmxcsr initial_legacy + MXCSR_AT_24(%rip)
.endif
    jmp     .Lloaded\@
.Lextra\@:
    mov     %rax, %rdx
    shr     $32, %rdx
    xrstor64 (\area)
    jmp     .Lmxcsr\@
.Lloaded\@:
.endm

# Return 1 where the area is not as XRSTOR and the moves both take it: then nothing was loaded.
.macro CHECK area, arr, live, refuse
    mov     HEADER_XCOMP(\area), %rax
    cmp     ARRANGEMENT_XCOMP_BV(\arr), %rax
    jne     \refuse
    mov     ARRANGEMENT_ROOM(\arr), %rax
    and     ARRANGEMENT_MOVES(\arr), %rax
    not     %rax
    test    %rax, HEADER_BV(\area)
    jnz     \refuse
    mov     ARRANGEMENT_MOVES(\arr), %rax
    not     %rax
    test    %rax, \live
    jnz     \refuse
    mov     ARRANGEMENT_MXCSR_RESERVED(\arr), %eax
    test    %eax, MXCSR_AT_24(\area)
    jnz     \refuse
    mov     528(\area), %rax
    or      536(\area), %rax
    or      544(\area), %rax
    or      552(\area), %rax
    or      560(\area), %rax
    or      568(\area), %rax
    jnz     \refuse
.endm

# The functions of one core, named \name_...; core.h says what they take.
.macro CORE name, wide, sabotage
    .globl \name\()_save, \name\()_load, \name\()_exchange, \name\()_store, \name\()_load_checked
    .hidden \name\()_save, \name\()_load, \name\()_exchange, \name\()_store, \name\()_load_checked

    .p2align 6
    .type \name\()_exchange, @function
\name\()_exchange:
    mov     %rdx, %r9
    mov     %rcx, %r10
    READ_IN_USE (%r8), %r9
    mov     %rax, %r8
    STORE   %rdi, %r9, %r8, %r8b, \wide
    LOAD    %rsi, %r10, %r8, %r8b, \wide, \sabotage
    xor     %eax, %eax
    ret

    .p2align 6
    .type \name\()_save, @function
\name\()_save:
    READ_IN_USE %r8, %rsi
    and     ARRANGEMENT_ROOM(%rsi), %r8
    STORE   %rdi, %rsi, %r8, %r8b, \wide
    mov     %r8, %rax
    ret

    .p2align 6
    .type \name\()_load, @function
\name\()_load:
    READ_IN_USE %r8, %rsi
    LOAD    %rdi, %rsi, %r8, %r8b, \wide, \sabotage
    ret

    .p2align 6
    .type \name\()_store, @function
\name\()_store:
    mov     %rdx, %r8
    STORE   %rdi, %rsi, %r8, %r8b, \wide
    ret

    .p2align 6
    .type \name\()_load_checked, @function
\name\()_load_checked:
    mov     %rdx, %r8
    CHECK   %rdi, %rsi, %r8, 9f
    LOAD    %rdi, %rsi, %r8, %r8b, \wide, \sabotage
    xor     %eax, %eax
    ret
9:  mov     $1, %eax
    ret
.endm
