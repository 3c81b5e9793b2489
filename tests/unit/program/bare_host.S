/* A host for one guest program on a bare machine, for emulators of processors that are not here.
 *
 * A boot sector: loads the program behind it to 64 KiB, enters 64-bit mode with one 2 MiB page,
 * enables FEATURES in XCR0, runs the program and sends the whole guest block to the first serial port.
 * Assemble with -DSEED= -DARGUMENT= -DFEATURES= -DSECTORS= (of the program), and for a first word of
 * input -DINPUT=. -DCHANGE="instruction" does that at each yield, for the program to notice. */
#include "fpstate_guest.h"

.intel_syntax noprefix

#define PROGRAM 0x10000
#define BLOCK 0x30000
#define STACK 0x2FFF8
#define SLOT 0x7000
#define TABLES 0x1000 /* PML4, PDPT, PD */

#define SERIAL 0x3F8
#define LINE_CONTROL (SERIAL + 3)
#define LINE_STATUS (SERIAL + 5)
#define EIGHT_BITS 3
#define TRANSMITTER_IDLE 0x40

.code16
.text
.globl _start
_start:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7C00
    mov si, offset packet
    mov ah, 0x42                /* read from the disk we came from (dl) */
    int 0x13
    jc stop

    mov edi, TABLES
    xor eax, eax
    mov ecx, 0x3000 / 4
    rep stosd
    mov dword ptr [TABLES], TABLES + 0x1003
    mov dword ptr [TABLES + 0x1000], TABLES + 0x2003
    mov dword ptr [TABLES + 0x2000], 0x83
    mov eax, TABLES
    mov cr3, eax
    mov eax, 0x40620            /* OSXSAVE, OSXMMEXCPT, OSFXSR, PAE */
    mov cr4, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100               /* EFER.LME */
    wrmsr
    mov eax, 0x80000023         /* PG, NE, MP, PE */
    mov cr0, eax
    lgdt [table]
    ljmp 8, offset long_mode

stop:
    hlt
    jmp stop

.code64
long_mode:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor ecx, ecx
    xor edx, edx
    mov eax, FEATURES
    xsetbv
    mov edi, BLOCK
    xor eax, eax
    mov ecx, FPSTATE_BLOCK_SIZE / 4
    rep stosd
    mov edi, BLOCK
    movabs rax, FPSTATE_MAGIC_VALUE
    mov [rdi + FPSTATE_MAGIC], rax
    movabs rax, SEED
    mov [rdi + FPSTATE_SEED], rax
    mov qword ptr [rdi + FPSTATE_FEATURES], FEATURES
    mov qword ptr [rdi + FPSTATE_ARGUMENT], ARGUMENT
#ifdef INPUT
    mov qword ptr [rdi + FPSTATE_INPUT_SIZE], 8
    mov qword ptr [rdi + FPSTATE_INPUT], INPUT
#endif
    mov ecx, 0xC0000101         /* gs base */
    mov eax, SLOT
    xor edx, edx
    wrmsr
    mov qword ptr [SLOT], offset leave
    fninit
    mov esp, STACK
    mov qword ptr [rsp], 0
    mov al, 0xFF                /* no interrupts: there is nobody to take them */
    out 0x21, al
    out 0xA1, al
    .irp register, eax, ecx, edx, ebx, ebp, esi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d
        xor \register, \register
    .endr
    push PROGRAM
    push 0x202
    popfq
    ret

leave: /* eax is the operation */
    pushfq
    cmp eax, FPSTATE_YIELD
    je 1f
    mov [BLOCK + FPSTATE_RESERVED], eax
    mov edx, LINE_CONTROL
    mov al, EIGHT_BITS
    out dx, al
    mov esi, BLOCK
    mov ecx, FPSTATE_BLOCK_SIZE
2:
    mov edx, SERIAL
    lodsb
    out dx, al
    mov edx, LINE_STATUS
3:
    in al, dx
    test al, TRANSMITTER_IDLE
    jz 3b
    dec ecx
    jnz 2b
    mov edx, 0x8900             /* Bochs ends when this word is spelt out */
    mov esi, offset farewell
    mov ecx, 8
    rep outsb
4:
    hlt
    jmp 4b
1:
#ifdef CHANGE
    CHANGE
#endif
    popfq
    ret

farewell:
    .ascii "Shutdown"

.balign 4
packet:
    .byte 16, 0
    .word SECTORS
    .word 0, PROGRAM >> 4
    .quad 1

.balign 8
descriptors:
    .quad 0
    .quad 0x00AF9A000000FFFF    /* 64-bit code */
table:
    .word 15
    .long descriptors

.org 510
    .word 0xAA55
