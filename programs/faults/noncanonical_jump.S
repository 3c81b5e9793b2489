/* A jump to a non-canonical address: #GP. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    movabs rax, 0x8000000000000000
    jmp rax

.section .note.GNU-stack, "", @progbits
