# Twins of the fast core that each get one thing wrong. The self-test must refuse them; tests see to that.
#include "fast_moves.h"

    .section fpstate_switching, "ax", @progbits
    CORE    sabotaged_opmask, 1, SABOTAGE_OPMASK
    CORE    sabotaged_mxcsr, 1, SABOTAGE_MXCSR
    CORE    sabotaged_mxcsr_avx, 0, SABOTAGE_MXCSR
    CORE    sabotaged_x87, 1, SABOTAGE_X87
    CORE    sabotaged_x87_avx, 0, SABOTAGE_X87
    .section .note.GNU-stack, "", @progbits
