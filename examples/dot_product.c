/* A guest program of one's own: a dot product, with a yield in the middle.
 *
 * Build it as ELF:
 *   gcc -O2 -ffreestanding -nostdlib -static-pie -fno-stack-protector -I"$(python -m fpstate include)" \
 *       examples/dot_product.c -o dot_product
 * or as a flat binary:
 *   gcc (as above) -Wl,--build-id=none -Wl,-T,"$(python -m fpstate include)/flat.ld" \
 *       examples/dot_product.c -o dot_product.elf
 *   objcopy -O binary -j .flat dot_product.elf dot_product.bin
 *
 * `argument` is the length of the vectors, at most 1024; the elements are small integers made from
 * the seed. Result: the product and its length, a double and a 64-bit integer. */
#include "fpstate_guest.h"

enum { LENGTH_MAXIMUM = 1024, TOO_LONG = FPSTATE_FAILED + 1 };

struct answer {
    double product;
    uint64_t length;
};

static double left[LENGTH_MAXIMUM], right[LENGTH_MAXIMUM];

/* x -> 5x + 1 modulo 2^64: enough for an example. */
static double next_element(uint64_t *state)
{
    *state = *state * 5 + 1;
    return (double)(*state >> 56) - 128.0;
}

FPSTATE_ENTRY(block)
{
    if (block->argument > LENGTH_MAXIMUM)
        fpstate_fail(block, TOO_LONG);

    uint64_t state = block->seed;
    for (uint64_t i = 0; i < block->argument; i++) {
        left[i] = next_element(&state);
        right[i] = next_element(&state);
    }

    double product = 0.0;
    for (uint64_t i = 0; i < block->argument; i++) {
        if (i == block->argument / 2)
            fpstate_yield(); /* every register, `product` among them, is as it was */
        product += left[i] * right[i];
    }

    struct answer *answer = (struct answer *)block->result;
    answer->product = product;
    answer->length = block->argument;
    fpstate_finish(block, sizeof *answer);
}
