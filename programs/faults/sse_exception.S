/* 1/0 in SSE with the exception unmasked: #XM. */
#include "fpstate_guest.h"

.intel_syntax noprefix

FPSTATE_ENTRY
    mov dword ptr [rdi + FPSTATE_RESULT], 0x1D80 /* ZM clear */
    ldmxcsr [rdi + FPSTATE_RESULT]
    mov eax, 1
    cvtsi2sd xmm0, eax
    xorps xmm1, xmm1
    divsd xmm0, xmm1
    ud2

.section .note.GNU-stack, "", @progbits
