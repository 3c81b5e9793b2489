/* A misaligned read with AC set: #AC. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    pushfq
    or dword ptr [rsp], 0x40000
    popfq
    mov rax, [rdi + FPSTATE_RESULT + 1]
    ud2

.section .note.GNU-stack, "", @progbits
