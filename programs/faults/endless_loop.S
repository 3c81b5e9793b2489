/* Never leaves, and counts in rbx. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
1:
    inc rbx
    jmp 1b

.section .note.GNU-stack, "", @progbits
