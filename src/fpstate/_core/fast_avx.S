# The fast core with VEX encodings alone: AVX is there and AVX-512 is not, or not to be used.
#include "fast_moves.h"

    .section fpstate_switching, "ax", @progbits
    CORE    fast_avx, 0, 0
    .section .note.GNU-stack, "", @progbits
