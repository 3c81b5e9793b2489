/* splitmix64, the generator that turns a seed into data (assembly, Intel syntax). */

#define GOLDEN_GAMMA 0x9E3779B97F4A7C15

/* state += gamma; out = mix(state); all three are 64-bit registers */
.macro SPLITMIX state, out, scratch
    movabs \scratch, GOLDEN_GAMMA
    add \state, \scratch
    mov \out, \state
    mov \scratch, \out
    shr \scratch, 30
    xor \out, \scratch
    movabs \scratch, 0xBF58476D1CE4E5B9
    imul \out, \scratch
    mov \scratch, \out
    shr \scratch, 27
    xor \out, \scratch
    movabs \scratch, 0x94D049BB133111EB
    imul \out, \scratch
    mov \scratch, \out
    shr \scratch, 31
    xor \out, \scratch
.endm
