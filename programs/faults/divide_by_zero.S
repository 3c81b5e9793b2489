/* An integer divided by 0: #DE. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    xor eax, eax
    xor edx, edx
    xor ecx, ecx
    div ecx
    ud2

.section .note.GNU-stack, "", @progbits
