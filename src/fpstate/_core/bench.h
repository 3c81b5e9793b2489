/* Loops that measurements run over contexts. */
#ifndef FPSTATE_BENCH_H
#define FPSTATE_BENCH_H

#include "context.h"

/* From ring[0] to ring[1], ... ring[steps]; 0 or an errno value. The second fetches ring[i + 2] ahead. */
int loop_switch(struct context *const *ring, uint64_t steps);
int loop_switch_next(struct context *const *ring, uint64_t steps);
void loop_control(struct control *one, struct control *other, uint64_t steps);

#endif
