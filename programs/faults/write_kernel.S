/* A write to an address of the kernel's half: #PF. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    movabs rax, 0xFFFF800000000000
    mov [rax], eax
    ud2

.section .note.GNU-stack, "", @progbits
