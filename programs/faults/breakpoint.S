/* INT3: #BP. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    int3
    ud2

.section .note.GNU-stack, "", @progbits
