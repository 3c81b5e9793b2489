/* Trials of a core: random states switched, and every register compared with what the processor itself keeps. */
#ifndef FPSTATE_TRIAL_H
#define FPSTATE_TRIAL_H

#include "cores.h"

enum { TRIAL_SLACK = 4096 }; /* bytes that an arrangement of a test may need beyond the processor's own */

struct trial_report {
    uint64_t pairs, mismatches;
    /* of the first mismatch */
    uint64_t from, to;  /* components in use */
    uint32_t component; /* 63: the header */
    bool saved;         /* in what was saved, else in what was loaded */
};

/* A place for a trial, with one state for each combination of components in use and two for those with SSE, whose
 * second has MXCSR alone. Leaves the thread's registers initial, but for what trial_open kept and trial_close loads. */
struct trial;
struct trial *trial_open(uint64_t seed); /* NULL where there is no memory */
void trial_close(struct trial *trial);
/* ``arrangement`` is where the core's areas have their components; not whole() to try other offsets. */
void trial_every_pair(struct trial *trial, const struct core *core, const struct arrangement *arrangement,
                      struct trial_report *report);
void trial_random_pairs(struct trial *trial, const struct core *core, const struct arrangement *arrangement,
                        uint64_t count, struct trial_report *report);
/* The time stamp cycles that ``rounds`` switches to and fro between two states took, with these components in use,
 * after a state with everything was in the registers. ``settled`` are those in use in the second state by then: where
 * in-use bits count writes, what a core ends by other means than XRSTOR stays in use. */
uint64_t trial_cycles(struct trial *trial, const struct core *core, uint64_t one, uint64_t other, uint32_t rounds,
                      uint64_t *settled);

#endif
