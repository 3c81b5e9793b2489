/* Is an image one that XRSTOR takes? Asked before it is executed; the fault guard stands behind. */
#ifndef FPSTATE_LEGAL_H
#define FPSTATE_LEGAL_H

#include "core.h"

/* What is wrong with an image, for ImageError: where, what is there, and what may be. */
struct illegal {
    char why[160];
    int64_t offset;
    uint64_t found, expected;
    int component; /* that the kernel does not permit; -1: that is not its trouble */
};

/* Whether XRSTOR of everything managed refuses an image of so many bytes; ``what`` says why, where it does. No more than
 * the first 576 bytes are looked at, some of them more than once: nobody else may be writing to them. */
bool image_illegal(const char *image, size_t size, struct illegal *what);

/* through.c: load an image and save it at once in the arrangement of contexts, into ``area``, zeroed; the guard must be
 * held. ``image`` is nobody else's, aligned, with room for the largest. The thread's vector registers become initial, its
 * control words stay. False: XRSTOR refused it, as ``refusal`` says. */
bool image_through_registers(const char *image, void *area, struct refusal *refusal);

#endif
