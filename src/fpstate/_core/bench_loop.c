/* Loops over contexts as a runtime in C would write them. Compiled with general registers only: states are live. */
#include "bench.h"

int loop_fill(struct context *context, const void *image, struct refusal *refusal)
{
    *refusal = xstate_restore(image, processor()->managed_mask);
    if (refusal->signal)
        return -1;
    return context_save(context);
}

/* From ring[0] to ring[1], ... ring[steps] */
static int switch_along(struct context *const *ring, uint64_t steps)
{
    int error = 0;
    for (uint64_t i = 0; i < steps && !error; i++)
        error = context_switch(ring[i], ring[i + 1]);
    return error;
}

static int switch_along_next(struct context *const *ring, uint64_t steps)
{
    int error = 0;
    for (uint64_t i = 0; i < steps && !error; i++)
        error = context_switch_next(ring[i], ring[i + 1], ring[i + 2]);
    return error;
}

static int run_stretches(struct context *const *ring, size_t count, enum loop_way way, size_t at, uint64_t steps)
{
    int error = 0;
    while (steps && !error) {
        uint64_t stretch = count - at < steps ? count - at : steps;
        error = way == WAY_SWITCH ? switch_along(ring + at, stretch) : switch_along_next(ring + at, stretch);
        steps -= stretch;
        at = (at + stretch) % count;
    }
    return error;
}

int loop_run(struct context *const *ring, size_t count, enum loop_way way, size_t at, uint64_t steps)
{
    size_t last = (at + steps) % count;
    int error = context_restore(ring[at]);
    if (error)
        return error;
    if (way == WAY_ROTATE || way == WAY_ROTATE_NEXT)
        error = context_rotate(ring, count, &at, steps, way == WAY_ROTATE_NEXT);
    else
        error = run_stretches(ring, count, way, at, steps);
    if (!error)
        error = context_save(ring[last]);
    xstate_restore(initial_image(), processor()->managed_mask);
    return error;
}

void loop_control(struct control *one, struct control *other, uint64_t steps)
{
    for (uint64_t i = 0; i < steps; i += 2) {
        control_exchange(one, other);
        control_exchange(other, one);
    }
}
