/* Leaves with DF and AC set and the x87 stack full, which a host must put right for itself. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    .rept 8
        fldpi
    .endr
    pushfq
    or dword ptr [rsp], 0x40400
    popfq
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .note.GNU-stack, "", @progbits
