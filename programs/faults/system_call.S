/* A system call, which programs must not make: getppid natively, a fault in a KVM guest. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    mov eax, 110
    syscall
    FPSTATE_LEAVE FPSTATE_FINISHED
    ud2

.section .note.GNU-stack, "", @progbits
