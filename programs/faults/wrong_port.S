/* OUT to a port that is not the host's: #GP natively. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    out 0x80, eax
    ud2

.section .note.GNU-stack, "", @progbits
