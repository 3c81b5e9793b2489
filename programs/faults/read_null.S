/* A read from address 0: #PF. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    xor eax, eax
    mov rax, [rax]
    ud2

.section .note.GNU-stack, "", @progbits
