/* A matrix product in tiles: C += A x B, `argument` times, on signed bytes.
 *
 * A is 30 x 64 and B 64 x 16, each in two tiles; C is 30 x 16 in four, which wrap at 32 bits. All eight tiles are
 * loaded once and stay in use from the first episode to the last, so that a switch that loses a row of any of them
 * changes the sums. B lies in memory as TDPBSSD takes it: rows of 4 x 8 bytes, four of its rows in one.
 *
 * An input of 8 bytes or more asks for a yield every N episodes, by turns through the port and through gs.
 *
 * Result: C tile by tile (4 x 15 rows x 8 numbers of 32 bits), episodes. Needs AMX-TILE and AMX-INT8. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define ROWS 15
#define A_ROW 64
#define B_ROWS 16
#define B_ROW 32
#define C_ROW 32
#define A_SIZE (ROWS * A_ROW)
#define B_SIZE (B_ROWS * B_ROW)
#define C_SIZE (ROWS * C_ROW)

FPSTATE_ENTRY
    mov r8, [rdi + FPSTATE_SEED]
    lea r9, [rip + left]        /* A, and B right after it */
    xor ecx, ecx
1:
    SPLITMIX r8, rax, rdx
    mov [r9 + 8 * rcx], rax
    inc ecx
    cmp ecx, (2 * A_SIZE + 2 * B_SIZE) / 8
    jne 1b

    ldtilecfg [rip + configuration]
    tilezero tmm0
    tilezero tmm1
    tilezero tmm2
    tilezero tmm3
    lea rsi, [rip + left]
    mov eax, A_ROW
    tileloadd tmm4, [rsi + rax]
    add rsi, A_SIZE
    tileloadd tmm5, [rsi + rax]
    lea rsi, [rip + right]
    mov eax, B_ROW
    tileloadd tmm6, [rsi + rax]
    add rsi, B_SIZE
    tileloadd tmm7, [rsi + rax]

    xor ebx, ebx                /* yield period, 0 for never */
    cmp qword ptr [rdi + FPSTATE_INPUT_SIZE], 8
    jb 2f
    mov rbx, [rdi + FPSTATE_INPUT]
2:
    mov r11, rbx                /* episodes until the next */
    xor r12d, r12d
    mov r10, [rdi + FPSTATE_ARGUMENT]
.Lepisode:
    test r10, r10
    jz .Ldone
    tdpbssd tmm0, tmm4, tmm6
    tdpbssd tmm1, tmm4, tmm7
    tdpbssd tmm2, tmm5, tmm6
    tdpbssd tmm3, tmm5, tmm7
    dec r10
    test rbx, rbx
    jz .Lepisode
    dec r11
    jnz .Lepisode
    mov r11, rbx
    xor r12d, 1
    jz 3f
    FPSTATE_LEAVE_BY_PORT FPSTATE_YIELD
    jmp .Lepisode
3:
    FPSTATE_LEAVE FPSTATE_YIELD
    jmp .Lepisode
.Ldone:
    lea rsi, [rdi + FPSTATE_RESULT]
    mov eax, C_ROW
    tilestored [rsi + rax], tmm0
    tilestored [rsi + rax + C_SIZE], tmm1
    tilestored [rsi + rax + 2 * C_SIZE], tmm2
    tilestored [rsi + rax + 3 * C_SIZE], tmm3
    tilerelease
    mov rax, [rdi + FPSTATE_ARGUMENT]
    mov [rdi + FPSTATE_RESULT + 4 * C_SIZE], rax
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], 4 * C_SIZE + 8
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.balign 64
configuration: /* palette 1; bytes a row, and rows, of C, A and B */
    .byte 1, 0
    .zero 14
    .short C_ROW, C_ROW, C_ROW, C_ROW, A_ROW, A_ROW, B_ROW, B_ROW
    .zero 16
    .byte ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, B_ROWS, B_ROWS
    .zero 8

.bss
.balign 64
left:
    .zero 2 * A_SIZE
right:
    .zero 2 * B_SIZE

.section .note.GNU-stack, "", @progbits
