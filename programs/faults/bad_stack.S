/* A push to a stack that is not there: #PF, and no stack for a handler to use. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    mov esp, 0x10
    push rax
    call 1f
1:
    ud2

.section .note.GNU-stack, "", @progbits
