/* Finishes with a result that is larger than its area. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    mov qword ptr [rdi + FPSTATE_RESULT_SIZE], -1
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .note.GNU-stack, "", @progbits
