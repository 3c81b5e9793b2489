/* What a fresh context starts with: stores every register before anything changes it.
 *
 * `argument` chooses what goes into the 1024 bytes that the result area has for it: vector registers 0-15 (0) or
 * 16-31 (1), or where the program may use tiles, tile 0 to 7 (2 to 9). Of any other number bit 0 counts.
 * Tiles are saved by XSAVEC, not by TILESTORED: a fresh context has no configuration, and LDTILECFG would zero what
 * another left. Result: what was chosen, rflags, 16 general registers in encoding order, the word at the top of the
 * stack, MXCSR, FNSAVE image (108 bytes), 4 spare, k0-k7, PKRU, 4 spare, FIP, FDP, FOP (2 bytes), 22 spare, what was
 * chosen, tile configuration. */
#include "fpstate_guest.h"

.intel_syntax noprefix

#define CHOSEN (FPSTATE_RESULT + 0)
#define RFLAGS (FPSTATE_RESULT + 8)
#define GENERAL (FPSTATE_RESULT + 16)
#define RETURN_SLOT (FPSTATE_RESULT + 144)
#define CONTROL (FPSTATE_RESULT + 152)
#define X87 (FPSTATE_RESULT + 160)
#define OPMASK (FPSTATE_RESULT + 272)
#define PKRU (FPSTATE_RESULT + 336)
#define FIP (FPSTATE_RESULT + 344)
#define FDP (FPSTATE_RESULT + 352)
#define FOP (FPSTATE_RESULT + 360)
#define VECTOR (FPSTATE_RESULT + 384)
#define TILECFG (FPSTATE_RESULT + 384 + 1024)
#define SIZE (384 + 1024 + 64)

#define TILE_SIZE 1024
#define TILES 8
#define FIRST_TILE 2            /* the argument that chooses it */
#define COMPACTED_AT 576        /* where XSAVEC puts a component that is alone */

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
    fxsave64 [rip + area]       /* FNSAVE shows 32 bits of the pointers */
    mov rax, [rip + area + 8]
    mov [rdi + FIP], rax
    mov rax, [rip + area + 16]
    mov [rdi + FDP], rax
    movzx eax, word ptr [rip + area + 6]
    mov [rdi + FOP], ax

    mov ecx, [rdi + FPSTATE_FEATURES]
    test ecx, FPSTATE_PKRU
    jz .Lno_keys
    xor ecx, ecx
    rdpkru
    mov [rdi + PKRU], eax
    mov ecx, [rdi + FPSTATE_FEATURES]
.Lno_keys:
    test ecx, FPSTATE_TILECFG
    jz .Lno_configuration
    sttilecfg [rdi + TILECFG]
.Lno_configuration:
    mov rbx, [rdi + FPSTATE_ARGUMENT]
    test ecx, FPSTATE_TILEDATA
    jz .Lhalf
    lea rax, [rbx - FIRST_TILE]
    cmp rax, TILES
    jb .Lchosen
.Lhalf:
    and ebx, 1
.Lchosen:
    mov [rdi + CHOSEN], rbx

    test ecx, FPSTATE_OPMASK
    jz .Lno_opmask
    .irp index, 0, 1, 2, 3, 4, 5, 6, 7
        kmovq [rdi + OPMASK + 8 * \index], k\index
    .endr
.Lno_opmask:
    mov eax, ebx
    sub ebx, FIRST_TILE
    jae .Ltile
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

.Ltile:
    mov eax, FPSTATE_TILEDATA
    xor edx, edx
    xsavec [rip + area]         /* what is initial is not written: the area is zero then */
    imul ebx, ebx, TILE_SIZE
    lea rsi, [rip + area + COMPACTED_AT]
    add rsi, rbx
    lea rbx, [rdi + VECTOR]
    mov ecx, TILE_SIZE / 8
1:
    mov rax, [rsi]
    mov [rbx], rax
    add rsi, 8
    add rbx, 8
    dec ecx
    jnz 1b
    jmp .Lstored

.bss
.balign 64
area:
    .zero COMPACTED_AT + TILES * TILE_SIZE

.section .note.GNU-stack, "", @progbits
