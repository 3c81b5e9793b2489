/* Fails with code 0x123. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    mov qword ptr [rdi + FPSTATE_STATUS], 0x123
    FPSTATE_LEAVE 0x123
    ud2

.section .note.GNU-stack, "", @progbits
