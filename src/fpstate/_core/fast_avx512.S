# The fast core with AVX-512: XCR0[7:5] and AVX512F, AVX512BW are there.
#include "fast_moves.h"

    .section fpstate_switching, "ax", @progbits
    CORE    fast_avx512, 1, 0
    .section .note.GNU-stack, "", @progbits
