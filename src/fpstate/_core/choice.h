/* What was chosen, and why. */
#ifndef FPSTATE_CHOICE_H
#define FPSTATE_CHOICE_H

#include "trial.h"

enum { MEASURED = 3, REASON_BYTES = 320 };

struct choice {
    const struct core *core;
    int error; /* 0, ENOTSUP, EINVAL, ENOMEM */
    char reason[REASON_BYTES];
    struct trial_report report;      /* no pairs: there was no trial */
    uint32_t permille[MEASURED];     /* of the portable core's time: as a glibc process, all but x87, everything */
    uint64_t settled[MEASURED];      /* what was in use in those, after contexts with everything */
    uint64_t test_cycles, measure_cycles;
};

/* ``setting`` is that of FPSTATE_CORE, or NULL; ``candidate`` may be any core that can run here. */
void core_choose(const char *setting, const struct core *candidate, struct choice *choice);
const struct choice *core_choice(void);

/* Make x87 initial where it counts as in use and holds nothing; several libraries leave it so. */
void x87_clear_dead(void);

#endif
