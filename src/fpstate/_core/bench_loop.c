/* Loops over contexts as a runtime in C would write them. Compiled with general registers only: states are live. */
#include "bench.h"

int loop_switch(struct context *const *ring, uint64_t steps)
{
    int error = 0;
    for (uint64_t i = 0; i < steps && !error; i++)
        error = context_switch(ring[i], ring[i + 1]);
    return error;
}

int loop_switch_next(struct context *const *ring, uint64_t steps)
{
    int error = 0;
    for (uint64_t i = 0; i < steps && !error; i++)
        error = context_switch_next(ring[i], ring[i + 1], ring[i + 2]);
    return error;
}

void loop_control(struct control *one, struct control *other, uint64_t steps)
{
    for (uint64_t i = 0; i < steps; i += 2) {
        control_exchange(one, other);
        control_exchange(other, one);
    }
}
