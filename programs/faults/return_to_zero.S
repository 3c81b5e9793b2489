/* The entry function returns, to the 0 in its return slot: #PF on the fetch. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    ret

.section .note.GNU-stack, "", @progbits
