/* A canary in every register the processor offers, compared `argument` times.
 *
 * Nothing that is compared is disturbed: registers are stored (FXSAVE for x87, SSE and the
 * control words) and the copies compared in rax and rdx, so the canaries stay live throughout.
 * The pattern is a splitmix64 stream of the seed: 10 general registers, one word for the control
 * registers, 8 x 2 words for st(i), 8 for k0 to k7, 32 x 8 for the vector registers, one word for PKRU, one for the
 * shapes of the tiles, three for x87's pointers, 8 x 16 x 8 for the tiles' rows. A byte of the stream that is zero is 80H
 * instead, and control registers differ from initial ones in each byte that can: a byte that is handed on shows. Seeds whose bit 1 is clear have whole
 * tiles, so that none of the 8192 bytes is zero. The others have 9 to 16 rows of 4 to 64 bytes, the last tile all of its
 * own; of a tile's 1024 bytes those beyond its shape are zero. They are compared as XSAVEC writes them, all of them:
 * TILESTORED would not show what lies beyond the shape.
 *
 * x87's FOP, FIP and FDP are compared where the processor keeps them without a pending exception: where FXSAVE shows what
 * FXRSTOR loaded.
 *
 * An input of 8 bytes or more asks for a yield every N iterations, by turns through the port and
 * through gs.
 *
 * Result: iterations, mismatches, slot of the first mismatch or -1, its iteration or -1, 1 where x87's pointers were
 * compared, and at 64 the 64 bytes found there. Slots: 0-9 rbx rbp r8-r15, 10 fcw, 11 fsw, 12 ftw, 13 mxcsr,
 * 14-21 st0-st7, 22-29 k0-k7, 30-61 vector 0-31, 62 pkru, 63 tilecfg, 64-191 the rows of the tiles, 16 for each,
 * 192 fop, 193 fip, 194 fdp. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define ITERATIONS (FPSTATE_RESULT + 0)
#define MISMATCHES (FPSTATE_RESULT + 8)
#define FIRST_SLOT (FPSTATE_RESULT + 16)
#define FIRST_ITERATION (FPSTATE_RESULT + 24)
#define POINTERS_COMPARED (FPSTATE_RESULT + 32)
#define FOUND (FPSTATE_RESULT + 64)

#define TILE_SIZE 8192
#define TILE_ROW 64
#define WORDS 296               /* of the pattern without tiles */
#define TILE_WORDS (TILE_SIZE / 8)
#define GENERAL (pattern + 0)
#define CONTROL (pattern + 80)
#define STACK (pattern + 88)
#define OPMASK (pattern + 216)
#define VECTOR (pattern + 280)
#define PKRU (pattern + 2328)
#define SHAPES (pattern + 2336)
#define OPCODE (pattern + 2344)
#define INSTRUCTION (pattern + 2352)
#define OPERAND (pattern + 2360)
#define TILES (pattern + 2368)
#define SHAPED 2                  /* the bit of a seed whose tiles are not whole */
#define LOW_BITS 0x7F7F7F7F7F7F7F7F /* all but the highest of each byte */
#define CANONICAL 17              /* bits that an address below 2^47 lacks */
#define COMPACTED_AT 576          /* where XSAVEC puts a component that is alone */
#define TILEDATA_IN_USE 4         /* of byte 514, XSTATE_BV[18] */

#define PKRU_SLOT 62
#define TILECFG_SLOT 63
#define TILE_SLOT 64
#define FOP_SLOT 192
#define FIP_SLOT 193
#define FDP_SLOT 194

/* fields of a tile configuration */
#define ROW_BYTES 16
#define ROWS 48

/* fields of an FXSAVE image */
#define FCW 0
#define FSW 2
#define FTW 4
#define FOP 6
#define FIP 8
#define FDP 16
#define MXCSR 24
#define ST0 32
#define XMM0 160

.macro REPORT slot /* rdx is 0 when the slot held its canary; the copy lies at `scratch` */
    test rdx, rdx
    jz .Lsame\@
    mov eax, \slot
    call mismatch
.Lsame\@:
.endm

.macro LOAD_GENERAL register, index
    mov \register, [rip + GENERAL + 8 * \index]
.endm

.macro COMPARE_GENERAL register, index
    mov [rip + scratch], \register
    mov rdx, \register
    xor rdx, [rip + GENERAL + 8 * \index]
    REPORT \index
.endm

.macro EACH_GENERAL operation
    \operation rbx, 0
    \operation rbp, 1
    \operation r8, 2
    \operation r9, 3
    \operation r10, 4
    \operation r11, 5
    \operation r12, 6
    \operation r13, 7
    \operation r14, 8
    \operation r15, 9
.endm

.macro COMPARE_CONTROL slot, field, mask
    mov eax, [rip + saved + \field]
    and eax, \mask
    mov [rip + scratch], rax
    mov edx, [rip + start + \field]
    and edx, \mask
    xor edx, eax
    REPORT \slot
.endm

.macro COMPARE_POINTER slot, field
    mov rdx, [rip + saved + \field]
    mov [rip + scratch], rdx
    xor rdx, [rip + start + \field]
    REPORT \slot
.endm

.macro COMPARE_ST index
    mov rdx, [rip + saved + ST0 + 16 * \index]
    mov [rip + scratch], rdx
    xor rdx, [rip + start + ST0 + 16 * \index]
    movzx eax, word ptr [rip + saved + ST0 + 16 * \index + 8]
    mov [rip + scratch + 8], rax
    xor ax, [rip + start + ST0 + 16 * \index + 8]
    or rdx, rax
    REPORT (14 + \index)
.endm

.macro COMPARE_K index
    kmovq rdx, k\index
    mov [rip + scratch], rdx
    xor rdx, [rip + OPMASK + 8 * \index]
    REPORT (22 + \index)
.endm

.macro COMPARE_SCRATCH index, size
    xor edx, edx
    .irp position, 0, 8, 16, 24, 32, 40, 48, 56
        .if \position < \size
            mov rax, [rip + scratch + \position]
            xor rax, [rip + VECTOR + 64 * \index + \position]
            or rdx, rax
        .endif
    .endr
    REPORT (30 + \index)
.endm

.macro COMPARE_XMM index
    movups [rip + scratch], xmm\index
    COMPARE_SCRATCH \index, 16
.endm

.macro COMPARE_YMM index
    vmovups [rip + scratch], ymm\index
    COMPARE_SCRATCH \index, 32
.endm

.macro COMPARE_ZMM index
    vmovups [rip + scratch], zmm\index
    COMPARE_SCRATCH \index, 64
.endm

.macro EACH_TILE operation
    \operation 0
    \operation 1
    \operation 2
    \operation 3
    \operation 4
    \operation 5
    \operation 6
    \operation 7
.endm

.macro LOAD_TILE index
    tileloadd tmm\index, [rsi + rdx + 1024 * \index]
.endm

.macro CHANGE low, high /* dl and dh are bits in which a control register differs from its initial value: in either byte */
    test dl, dl
    jnz .Llow\@
    mov dl, \low
.Llow\@:
    test dh, dh
    jnz .Lhigh\@
    mov dh, \high
.Lhigh\@:
.endm

FPSTATE_ENTRY
    mov r8, [rdi + FPSTATE_SEED]
    lea rsi, [rip + pattern]
    mov r9d, WORDS
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_TILECFG
    jz 0f
    mov r9d, WORDS + TILE_WORDS
0:
    movabs r10, LOW_BITS
    xor ecx, ecx
1:
    SPLITMIX r8, rax, rdx
    mov rdx, rax
    and rdx, r10
    add rdx, r10
    or rdx, rax
    or rdx, r10
    not rdx                     /* 80H for each byte that is zero */
    or rax, rdx
    mov [rsi + 8 * rcx], rax
    inc ecx
    cmp ecx, r9d
    jne 1b

    /* an FXRSTOR image for x87, SSE and the control words */
    mov rax, [rip + CONTROL]
    mov edx, eax
    and edx, 0x0D00             /* RC, and PC of 53 or 64 bits */
    CHANGE 0, 0x04              /* all exceptions stay masked */
    xor edx, 0x037F
    mov [rip + start + FCW], dx
    mov rdx, rax
    shr rdx, 16
    and edx, 0x7F3F             /* C3, TOP, C2-C0 and the exception flags, all masked */
    CHANGE 0x01, 0x01
    mov [rip + start + FSW], dx
    mov byte ptr [rip + start + FTW], 0xFF
    mov rdx, rax
    shr rdx, 32
    and edx, 0xE07F             /* FTZ, RC, DAZ and the exception flags */
    CHANGE 0x01, 0x20
    xor edx, 0x1F80
    mov [rip + start + MXCSR], edx
    mov rdx, [rip + OPCODE]
    and edx, 0x7FF
    CHANGE 0x01, 0x01
    mov [rip + start + FOP], dx
    mov rax, [rip + INSTRUCTION]
    shr rax, CANONICAL
    mov [rip + start + FIP], rax
    mov rax, [rip + OPERAND]
    shr rax, CANONICAL
    mov [rip + start + FDP], rax
    lea r9, [rip + start]
    xor ecx, ecx
2:
    mov eax, ecx
    shl eax, 4
    mov rdx, [rsi + rax + STACK - pattern]
    bts rdx, 63
    mov [r9 + rax + ST0], rdx
    mov rdx, [rsi + rax + STACK - pattern + 8]
    and edx, 0xBFFF             /* neither zero nor special */
    or edx, 0x0101
    mov [r9 + rax + ST0 + 8], dx
    inc ecx
    cmp ecx, 8
    jne 2b
    xor ecx, ecx
3:
    mov eax, ecx
    shl eax, 6
    mov rdx, [rsi + rax + VECTOR - pattern]
    mov r10, [rsi + rax + VECTOR - pattern + 8]
    shr eax, 2
    mov [r9 + rax + XMM0], rdx
    mov [r9 + rax + XMM0 + 8], r10
    inc ecx
    cmp ecx, 16
    jne 3b
    fxrstor64 [r9]
    fxsave64 [rip + saved]
    mov rax, [rip + saved + FIP]
    xor rax, [rip + start + FIP]
    mov rdx, [rip + saved + FDP]
    xor rdx, [rip + start + FDP]
    or rax, rdx
    movzx edx, word ptr [rip + saved + FOP]
    xor dx, [rip + start + FOP]
    or rax, rdx
    sete byte ptr [rip + pointers_kept]

    mov rax, [rdi + FPSTATE_FEATURES]
    test eax, FPSTATE_TILECFG
    jz .Lshaped
    call shape_tiles
    mov rax, [rdi + FPSTATE_FEATURES]
.Lshaped:
    test eax, FPSTATE_OPMASK
    jz 4f
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7
        kmovq k\index, [rip + OPMASK + 8 * \index]
    .endr
4:
    test eax, FPSTATE_ZMM_HI256
    jnz .Lload_zmm
    test eax, FPSTATE_AVX
    jz .Lloaded
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovups ymm\index, [rip + VECTOR + 64 * \index]
    .endr
    jmp .Lloaded
.Lload_zmm:
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovups zmm\index, [rip + VECTOR + 64 * \index]
    .endr
    .irp index, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovups zmm\index, [rip + VECTOR + 64 * \index]
    .endr
.Lloaded:
    test eax, FPSTATE_PKRU
    jz .Lno_keys
    mov eax, [rip + PKRU]
    and eax, ~3                 /* key 0 is the program's own memory */
    mov [rip + PKRU], eax
    xor ecx, ecx
    xor edx, edx
    wrpkru
.Lno_keys:
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_TILECFG
    jz .Lno_tiles
    ldtilecfg [rip + configuration]
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_TILEDATA
    jz .Lno_tiles
    lea rsi, [rip + TILES]
    mov edx, TILE_ROW
    EACH_TILE LOAD_TILE
.Lno_tiles:
    xor eax, eax
    mov [rdi + ITERATIONS], rax
    mov [rdi + MISMATCHES], rax
    lea rsi, [rdi + FOUND]
    mov ecx, 8
5:
    mov [rsi], rax
    add rsi, 8
    dec ecx
    jnz 5b
    .irp offset, 32, 40, 48, 56
        mov [rdi + FPSTATE_RESULT + \offset], rax
    .endr
    movzx edx, byte ptr [rip + pointers_kept]
    mov [rdi + POINTERS_COMPARED], rdx
    dec rax
    mov [rdi + FIRST_SLOT], rax
    mov [rdi + FIRST_ITERATION], rax

    xor esi, esi                /* yield period, 0 for never */
    cmp qword ptr [rdi + FPSTATE_INPUT_SIZE], 8
    jb 6f
    mov rsi, [rdi + FPSTATE_INPUT]
6:
    mov [rip + until_yield], rsi
    mov [rip + yield_period], rsi
    EACH_GENERAL LOAD_GENERAL
    mov rcx, [rdi + FPSTATE_ARGUMENT]

.Lloop:
    cmp [rdi + ITERATIONS], rcx
    je .Ldone
    EACH_GENERAL COMPARE_GENERAL
    call clear_scratch
    fxsave64 [rip + saved]
    COMPARE_CONTROL 10, FCW, 0xFFFF
    COMPARE_CONTROL 11, FSW, 0xFFFF
    COMPARE_CONTROL 12, FTW, 0xFF
    COMPARE_CONTROL 13, MXCSR, 0xFFFFFFFF
    cmp byte ptr [rip + pointers_kept], 0
    je .Lpointers_compared
    COMPARE_CONTROL FOP_SLOT, FOP, 0x7FF
    COMPARE_POINTER FIP_SLOT, FIP
    COMPARE_POINTER FDP_SLOT, FDP
.Lpointers_compared:
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7
        COMPARE_ST \index
    .endr
    call clear_scratch
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_OPMASK
    jz 7f
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7
        COMPARE_K \index
    .endr
7:
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_ZMM_HI256
    jnz .Lcompare_zmm
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_AVX
    jnz .Lcompare_ymm
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        COMPARE_XMM \index
    .endr
    jmp .Lcompared
.Lcompare_ymm:
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        COMPARE_YMM \index
    .endr
    jmp .Lcompared
.Lcompare_zmm:
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        COMPARE_ZMM \index
    .endr
    .irp index, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        COMPARE_ZMM \index
    .endr
.Lcompared:
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_PKRU
    jz .Lkeys_compared
    call clear_scratch
    xor ecx, ecx
    rdpkru
    mov [rip + scratch], eax
    mov edx, eax
    xor edx, [rip + PKRU]
    REPORT PKRU_SLOT
.Lkeys_compared:
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_TILECFG
    jz .Ltiles_compared
    call compare_tiles
.Ltiles_compared:
    mov rcx, [rdi + FPSTATE_ARGUMENT]
    mov rsi, [rip + yield_period]
    inc qword ptr [rdi + ITERATIONS]
    test rsi, rsi
    jz .Lloop
    dec qword ptr [rip + until_yield]
    jnz .Lloop
    mov [rip + until_yield], rsi
    xor dword ptr [rip + by_port], 1
    jz 8f
    FPSTATE_LEAVE_BY_PORT FPSTATE_YIELD
    jmp .Lloop
8:
    FPSTATE_LEAVE FPSTATE_YIELD
    jmp .Lloop
.Ldone:
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 128
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

mismatch: /* eax is the slot; rax and rdx are free */
    inc qword ptr [rdi + MISMATCHES]
    cmp qword ptr [rdi + FIRST_SLOT], -1
    jne 9f
    mov [rdi + FIRST_SLOT], rax
    mov rax, [rdi + ITERATIONS]
    mov [rdi + FIRST_ITERATION], rax
    .irp position, 0, 8, 16, 24, 32, 40, 48, 56
        mov rax, [rip + scratch + \position]
        mov [rdi + FOUND + \position], rax
    .endr
9:
    ret

compare_tiles: /* rax, rcx, rdx and rsi are free */
    sttilecfg [rip + scratch]
    xor edx, edx
    .irp position, 0, 8, 16, 24, 32, 40, 48, 56
        mov rax, [rip + scratch + \position]
        xor rax, [rip + configuration + \position]
        or rdx, rax
    .endr
    test rdx, rdx
    jz 1f
    mov eax, TILECFG_SLOT       /* tiles cannot be read with another's shapes */
    jmp mismatch
1:
    test dword ptr [rdi + FPSTATE_FEATURES], FPSTATE_TILEDATA
    jz 4f
    mov eax, FPSTATE_TILEDATA
    xor edx, edx
    xsavec [rip + saved_tiles]
    test byte ptr [rip + saved_tiles + 514], TILEDATA_IN_USE
    jnz 6f
    call clear_tiles            /* what is initial was not written */
6:
    lea rsi, [rip + saved_tiles + COMPACTED_AT]
    lea rdx, [rip + TILES]
    xor ecx, ecx
2:
    mov rax, [rsi + rcx]
    cmp rax, [rdx + rcx]
    jne 5f
3:
    add ecx, 8
    cmp ecx, TILE_SIZE
    jne 2b
4:
    ret
5: /* one report for each row */
    and ecx, -TILE_ROW
    .irp position, 0, 8, 16, 24, 32, 40, 48, 56
        mov rax, [rsi + rcx + \position]
        mov [rip + scratch + \position], rax
    .endr
    mov eax, ecx
    shr eax, 6
    add eax, TILE_SLOT
    call mismatch
    add ecx, TILE_ROW - 8
    jmp 3b

clear_tiles:
    lea rsi, [rip + saved_tiles + COMPACTED_AT]
    xor eax, eax
    mov ecx, TILE_SIZE / 8
7:
    mov [rsi], rax
    add rsi, 8
    dec ecx
    jnz 7b
    ret

shape_tiles: /* a configuration from the word for it, and zeros in the pattern beyond it; before registers are loaded */
    lea rsi, [rip + configuration]
    lea r8, [rip + SHAPES]
    lea r9, [rip + TILES]
    mov byte ptr [rsi], 1       /* palette */
    xor ecx, ecx
1:
    movzx eax, byte ptr [r8 + rcx]
    mov edx, eax
    and edx, 7
    add edx, 9
    shr eax, 4
    lea eax, [4 * rax + 4]
    cmp ecx, 7                  /* the end of the component is in use */
    je 7f
    test byte ptr [rdi + FPSTATE_SEED], SHAPED
    jnz 2f
7:
    mov edx, 16
    mov eax, TILE_ROW
2:
    mov [rsi + 2 * rcx + ROW_BYTES], ax
    mov [rsi + rcx + ROWS], dl
    xor r10d, r10d              /* row */
3:
    xor r11d, r11d              /* byte in it */
4:
    cmp r10d, edx
    jae 5f
    cmp r11d, eax
    jb 6f
5:
    mov byte ptr [r9 + r11], 0
6:
    inc r11d
    cmp r11d, TILE_ROW
    jne 4b
    add r9, TILE_ROW
    inc r10d
    cmp r10d, 16
    jne 3b
    inc ecx
    cmp ecx, 8
    jne 1b
    ret

clear_scratch: /* so that what a narrow register leaves is not taken for part of it */
    xor eax, eax
    .irp position, 0, 8, 16, 24, 32, 40, 48, 56
        mov [rip + scratch + \position], rax
    .endr
    ret

.bss
.balign 64
pattern:
    .zero 8 * (WORDS + TILE_WORDS)
.balign 64
start: /* the FXRSTOR image that the run began with */
    .zero 512
saved:
    .zero 512
scratch:
    .zero 64
configuration:
    .zero 64
.balign 64
saved_tiles: /* an XSAVE area */
    .zero COMPACTED_AT + TILE_SIZE
yield_period:
    .quad 0
until_yield:
    .quad 0
by_port:
    .long 0
pointers_kept:
    .byte 0

.section .note.GNU-stack, "", @progbits
