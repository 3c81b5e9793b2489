/* Leaves with operation 2, which means nothing. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    FPSTATE_LEAVE 2
    ud2

.section .note.GNU-stack, "", @progbits
