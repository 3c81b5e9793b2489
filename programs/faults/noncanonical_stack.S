/* A push through a non-canonical stack pointer: #SS. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    movabs rsp, 0x8000000000000000
    push rax
    ud2

.section .note.GNU-stack, "", @progbits
