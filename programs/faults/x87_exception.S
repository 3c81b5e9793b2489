/* 1/0 in the x87 unit with the exception unmasked: #MF at the next instruction that waits. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    mov word ptr [rdi + FPSTATE_RESULT], 0x037B /* ZM clear */
    fldcw [rdi + FPSTATE_RESULT]
    fld1
    fldz
    fdivp st(1), st(0)
    fwait
    ud2

.section .note.GNU-stack, "", @progbits
