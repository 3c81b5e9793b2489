/* The contract between a guest program and the host that runs it.
 *
 * Works from C (C11, GCC or Clang) and from assembly (.S, either syntax).
 *
 * A program is position-independent code without relocations, loaded into the private memory of
 * one vCPU at a page-aligned base. Its entry is offset 0 of a flat binary, e_entry of an ELF file.
 * Nothing is linked to it: no C library, no system calls, no thread-local storage, no stack protector.
 *
 * At entry
 *   rdi            the guest block (below): writable, 64-byte aligned
 *   rsp            top of the stack, rsp % 16 == 8 as after a call; the return address slot holds 0
 *                  and at least FPSTATE_STACK_MINIMUM bytes lie below it
 *   other GPRs     0
 *   rflags         0x202
 *   x87, vectors   initial configuration (FCW 0x37f, MXCSR 0x1f80, registers 0)
 *   tiles          initial configuration: no palette, as after TILERELEASE
 *   PKRU           0x55555554, where protection keys are on: key 0, which all its memory has, is open.
 *                  A program that closes it leaves by the port: the call reads and pushes through it
 * The entry function must not return, and fs and gs must be left alone.
 *
 * Leaving
 *   An operation goes into eax, then either of
 *     out %eax, $0xF5      traps to the host: works anywhere, costs a trap
 *     call *%gs:0          the exit routine of the host: cheap, uses one stack slot
 *   Both preserve every register, so that after FPSTATE_YIELD the program goes on as if nothing
 *   had happened. After any other operation the host does not come back.
 */
#ifndef FPSTATE_GUEST_H
#define FPSTATE_GUEST_H

/* Offsets in the guest block; every field is a little-endian 64-bit number. */
#define FPSTATE_MAGIC 0        /* FPSTATE_MAGIC_VALUE */
#define FPSTATE_SEED 8         /* varies the data */
#define FPSTATE_FEATURES 16    /* components the program may use, numbered as in XCR0 */
#define FPSTATE_ARGUMENT 24    /* amount of work */
#define FPSTATE_INPUT_SIZE 32  /* bytes the host placed at FPSTATE_INPUT */
#define FPSTATE_RESULT_SIZE 40 /* written by the program: bytes at FPSTATE_RESULT */
#define FPSTATE_STATUS 48      /* 0, or the code the program failed with */
#define FPSTATE_RESERVED 56
#define FPSTATE_INPUT 64
#define FPSTATE_RESULT 2048
#define FPSTATE_BLOCK_SIZE 4096

#define FPSTATE_INPUT_MAXIMUM 1984  /* FPSTATE_RESULT - FPSTATE_INPUT */
#define FPSTATE_RESULT_MAXIMUM 2048 /* FPSTATE_BLOCK_SIZE - FPSTATE_RESULT */
#define FPSTATE_STACK_MINIMUM 4096

#define FPSTATE_MAGIC_VALUE 0x0000000154535046 /* "FPST", version 1 */

/* Bits of FPSTATE_FEATURES (XCR0). */
#define FPSTATE_X87 0x01
#define FPSTATE_SSE 0x02
#define FPSTATE_AVX 0x04
#define FPSTATE_OPMASK 0x20
#define FPSTATE_ZMM_HI256 0x40
#define FPSTATE_HI16_ZMM 0x80
#define FPSTATE_PKRU 0x200
#define FPSTATE_TILECFG 0x20000
#define FPSTATE_TILEDATA 0x40000 /* with FPSTATE_TILECFG; without it a tile instruction ends the program */

/* Operations: what eax says when a program leaves. */
#define FPSTATE_FINISHED 0 /* the result is in the block */
#define FPSTATE_YIELD 1    /* let others run, then go on behind the exit */
#define FPSTATE_FAILED 256 /* this and above: failed with that code; 2 to 255 are reserved */

#define FPSTATE_PORT 0xF5
#define FPSTATE_EXIT_SLOT 0 /* offset in gs of the address of the exit routine */

#ifdef __ASSEMBLER__

/* Encoded by hand so that they read the same in AT&T and Intel syntax. */
.macro FPSTATE_LEAVE operation /* mov $operation, %eax; call *%gs:0 */
    .byte 0xB8
    .long \operation
    .byte 0x65, 0xFF, 0x14, 0x25
    .long FPSTATE_EXIT_SLOT
.endm

.macro FPSTATE_LEAVE_BY_PORT operation /* mov $operation, %eax; out %eax, $0xF5 */
    .byte 0xB8
    .long \operation
    .byte 0xE7, FPSTATE_PORT
.endm

.macro FPSTATE_ENTRY /* where the program starts; first in a flat binary */
    .section .text.entry, "ax", @progbits
    .globl _start
    .type _start, @function
_start:
.endm

#else

#include <stddef.h>
#include <stdint.h>

struct fpstate_block {
    uint64_t magic;
    uint64_t seed;
    uint64_t features;
    uint64_t argument;
    uint64_t input_size;
    uint64_t result_size;
    uint64_t status;
    uint64_t reserved;
    unsigned char input[FPSTATE_INPUT_MAXIMUM];
    unsigned char result[FPSTATE_RESULT_MAXIMUM];
};

_Static_assert(offsetof(struct fpstate_block, status) == FPSTATE_STATUS, "status");
_Static_assert(offsetof(struct fpstate_block, input) == FPSTATE_INPUT, "input");
_Static_assert(offsetof(struct fpstate_block, result) == FPSTATE_RESULT, "result");
_Static_assert(sizeof(struct fpstate_block) == FPSTATE_BLOCK_SIZE, "block");

/* void _start(struct fpstate_block *block), written as FPSTATE_ENTRY(block) { ... } */
#define FPSTATE_ENTRY(block)                                                                       \
    __attribute__((section(".text.entry"), used, noreturn)) void _start(struct fpstate_block *block)

/* Leave with an operation. The stack pointer steps over the red zone, which the call would write to. */
static inline void fpstate_leave(uint32_t operation)
{
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
                     "call *%%gs:0\n\t"
                     "lea 128(%%rsp), %%rsp"
                     :
                     : "a"(operation)
                     : "memory", "cc");
}

static inline void fpstate_yield(void)
{
    fpstate_leave(FPSTATE_YIELD);
}

__attribute__((noreturn)) static inline void fpstate_finish(struct fpstate_block *block, uint64_t size)
{
    block->result_size = size;
    fpstate_leave(FPSTATE_FINISHED);
    __builtin_unreachable();
}

__attribute__((noreturn)) static inline void fpstate_fail(struct fpstate_block *block, uint32_t code)
{
    block->status = code < FPSTATE_FAILED ? FPSTATE_FAILED : code;
    fpstate_leave((uint32_t)block->status);
    __builtin_unreachable();
}

#endif /* __ASSEMBLER__ */
#endif /* FPSTATE_GUEST_H */
