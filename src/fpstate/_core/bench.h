/* Loops that measurements run over contexts. */
#ifndef FPSTATE_BENCH_H
#define FPSTATE_BENCH_H

#include "context.h"
#include "core.h"

enum loop_way { WAY_SWITCH, WAY_NEXT, WAY_ROTATE, WAY_ROTATE_NEXT, WAY_COUNT };
enum { LOOKAHEAD = 2 }; /* a ring has so many of its first members once more behind its last */

/* Let a context hold what an image does; -1 where XRSTOR refuses that, as ``refusal`` says, else 0 or an errno value. */
int loop_fill(struct context *context, const void *image, struct refusal *refusal);
/* Load member ``at``, switch so often, save the last one, and leave the registers initial; 0 or an errno value. */
int loop_run(struct context *const *ring, size_t count, enum loop_way way, size_t at, uint64_t steps);
void loop_control(struct control *one, struct control *other, uint64_t steps);

#endif
