/* Yields for ever, by turns through gs and the port. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
1:
    FPSTATE_LEAVE FPSTATE_YIELD
    FPSTATE_LEAVE_BY_PORT FPSTATE_YIELD
    inc rbx
    jmp 1b

.section .note.GNU-stack, "", @progbits
