/* MOVAPS to an odd address: #GP. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    movaps [rdi + FPSTATE_RESULT + 1], xmm0
    ud2

.section .note.GNU-stack, "", @progbits
