/* UD2: #UD. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    ud2

.section .note.GNU-stack, "", @progbits
