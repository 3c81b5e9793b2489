/* Three fibers in turn, each with a rounding control of its own: an example of the control-only switch.
 *
 *   gcc -std=c11 -O2 -Wall -Wextra -shared -fPIC -I"$(fpstate include)" thirds.c fibers.o -o libthirds.so
 *
 * thirds(table, results) fills nine doubles: 1/3, 2/3 and 3/3 of each fiber. */
#include "fibers.h"

#include <stdlib.h>

enum { FIBERS = 3, ROUNDS = 3, STACK_BYTES = 64 << 10, ROUNDING_SHIFT = 13 };

struct worker {
    struct fiber fiber;
    const fpstate_api *api;
    struct fiber *next;
    double *results;
};

/* Compilers move arithmetic over a call that changes the rounding. They do not move a call. */
__attribute__((noinline)) static double quotient(volatile double dividend, volatile double divisor)
{
    return dividend / divisor;
}

static void work(void *argument)
{
    struct worker *self = (struct worker *)argument;
    for (int i = 0;; i++) {
        if (i < ROUNDS)
            self->results[i] = quotient(i + 1, 3);
        fiber_switch_control(self->api, &self->fiber, self->next);
    }
}

int thirds(const fpstate_api *api, double *results)
{
    static const uint32_t rounding[FIBERS] = {0, 1, 2}; /* to nearest, down, up */
    struct worker workers[FIBERS];
    struct fiber home;
    if (!fpstate_api_fits(api))
        return -1;
    char *stacks = (char *)malloc(FIBERS * STACK_BYTES);
    if (!stacks)
        return -1;
    for (int i = 0; i < FIBERS; i++) {
        struct worker *worker = &workers[i];
        fiber_init(&worker->fiber, NULL, stacks + i * STACK_BYTES, STACK_BYTES, work, worker);
        worker->fiber.control.mxcsr |= rounding[i] << ROUNDING_SHIFT;
        worker->api = api;
        worker->next = i + 1 < FIBERS ? &workers[i + 1].fiber : &home;
        worker->results = results + i * ROUNDS;
    }
    for (int i = 0; i < ROUNDS; i++)
        fiber_switch_control(api, &home, &workers[0].fiber);
    free(stacks);
    return 0;
}
