/* A caller's image, copied before anything is asked of it. What it lies in may be shared with other threads and
 * processes: they could write to it between a check and a load, or take the memory away. */
#ifndef FPSTATE_PRIVATE_COPY_H
#define FPSTATE_PRIVATE_COPY_H

#include "core.h"

enum { ILLEGAL = -2, REFUSED = -1 };

struct private_copy {
    char *image; /* 64-byte aligned, with room for the largest image, and zero behind what was copied; NULL: none */
    size_t size; /* bytes that were copied */
};

/* Copy what an image of ``size`` bytes states, in one pass over each of its bytes; the guard must be held. 0; REFUSED where
 * memory was missing, as ``refusal`` says, with an address in the copy; or ENOMEM. */
int private_copy_take(struct private_copy *copy, const void *image, size_t size, struct refusal *refusal);
/* Nothing of a state stays behind. Uses no vector register: the state may have been loaded. */
void private_copy_wipe(struct private_copy *copy);

#endif
