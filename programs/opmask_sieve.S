/* A sieve of Eratosthenes in opmask registers: k1 to k6 mark the composites among 384 numbers.
 *
 * Each of `argument` episodes sieves one of the seed's four windows with the primes below 182 and
 * packs what is left with VPCOMPRESSD; the fold over all episodes stays in zmm6.
 * Result: window, count, count over all episodes, episodes; at 64 the fold (16 x 32 bits), at 128
 * the primes of the last window (32 bits each). Needs AVX512F and AVX512BW. */
#include "fpstate_guest.h"
#include "splitmix.h"

.intel_syntax noprefix

#define WINDOW (FPSTATE_RESULT + 0)
#define COUNT (FPSTATE_RESULT + 8)
#define TOTAL (FPSTATE_RESULT + 16)
#define EPISODES (FPSTATE_RESULT + 24)
#define FOLD (FPSTATE_RESULT + 64)
#define LIST (FPSTATE_RESULT + 128)
#define RESIDUES FPSTATE_INPUT /* of 64 numbers, a byte each */

/* zmm0 residues, zmm1 prime, zmm2 64 mod prime, zmm3 prime - zmm2 (bytes);
 * zmm4 0 to 15, zmm5 scratch, zmm6 fold, zmm7 candidates (doublewords) */

/* Mark 64 numbers, then go on to the residues of the next 64: r + s, less p where r >= p - s. */
.macro MARK composites
    vptestnmb k0, zmm0, zmm0
    korq \composites, \composites, k0
    vpcmpub k7, zmm0, zmm3, 5
    vpaddb zmm0, zmm0, zmm2
    vpsubb zmm0{k7}, zmm0, zmm1
.endm

.macro PACK_16 composites, first
    kshiftrq k7, \composites, (\first) % 64
    kmovw eax, k7
    popcnt eax, eax
    lea edx, [r9 + \first]
    vpbroadcastd zmm7, edx
    vpaddd zmm7, zmm7, zmm4
    vpcompressd zmm5{k7}{z}, zmm7
    vmovdqu32 [r10], zmm5
    lea r10, [r10 + 4 * rax]
    vprold zmm6, zmm6, 5
    vpaddd zmm6, zmm6, zmm5
.endm

.macro PACK composites, first
    knotq \composites, \composites
    kortestq \composites, \composites
    jz .Lnone\@
    PACK_16 \composites, (\first)
    PACK_16 \composites, (\first + 16)
    PACK_16 \composites, (\first + 32)
    PACK_16 \composites, (\first + 48)
.Lnone\@:
.endm

FPSTATE_ENTRY
    xor eax, eax
    .irp offset, WINDOW, COUNT, TOTAL, EPISODES, 32 + FPSTATE_RESULT, 40 + FPSTATE_RESULT, 48 + FPSTATE_RESULT, 56 + FPSTATE_RESULT
        mov [rdi + \offset], rax
    .endr
    lea r10, [rdi + LIST]
    vmovdqa32 zmm4, [rip + iota]
    vpxord zmm6, zmm6, zmm6
.Lepisode:
    mov rcx, [rdi + EPISODES]
    cmp rcx, [rdi + FPSTATE_ARGUMENT]
    je .Ldone
    and ecx, 3
    movabs rax, GOLDEN_GAMMA
    imul rcx, rax
    add rcx, [rdi + FPSTATE_SEED]
    SPLITMIX rcx, rax, rdx
    and eax, 0x7FFF
    lea r9d, [rax + 1024]       /* above all primes of the table */
    mov [rdi + WINDOW], r9

    .irp composites, k1, k2, k3, k4, k5, k6
        kxorq \composites, \composites, \composites
    .endr
    lea rsi, [rip + primes]
.Lprime:
    movzx ecx, byte ptr [rsi]
    test ecx, ecx
    jz .Lsieved
    mov eax, r9d
    xor edx, edx
    div ecx
    xor eax, eax
1:
    mov [rdi + rax + RESIDUES], dl
    inc edx
    cmp edx, ecx
    jne 2f
    xor edx, edx
2:
    inc eax
    cmp eax, 64
    jne 1b
    vmovdqu8 zmm0, [rdi + RESIDUES]
    vpbroadcastb zmm1, ecx
    mov eax, 64
    xor edx, edx
    div ecx
    vpbroadcastb zmm2, edx
    vpsubb zmm3, zmm1, zmm2
    .irp composites, k1, k2, k3, k4, k5, k6
        MARK \composites
    .endr
    inc rsi
    jmp .Lprime
.Lsieved:
    lea r10, [rdi + LIST]
    PACK k1, 0
    PACK k2, 64
    PACK k3, 128
    PACK k4, 192
    PACK k5, 256
    PACK k6, 320
    lea rax, [rdi + LIST]
    mov rdx, r10
    sub rdx, rax
    shr rdx, 2
    mov [rdi + COUNT], rdx
    add [rdi + TOTAL], rdx
    inc qword ptr [rdi + EPISODES]
    jmp .Lepisode
.Ldone:
    vmovdqu32 [rdi + FOLD], zmm6
    sub r10, rdi
    sub r10, FPSTATE_RESULT
    mov [rdi + FPSTATE_RESULT_SIZE], r10
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .rodata
.balign 64
iota:
    .long 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
primes: /* 181 squared is 32761, 191 squared 36481: enough for windows that end below 34176 */
    .byte 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89
    .byte 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 0

.section .note.GNU-stack, "", @progbits
