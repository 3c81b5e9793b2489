/* HLT, which only the kernel may: #GP. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    hlt
    ud2

.section .note.GNU-stack, "", @progbits
