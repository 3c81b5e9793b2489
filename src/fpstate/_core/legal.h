/* Is an image one that XRSTOR takes? Asked before it is executed; the fault guard stands behind. */
#ifndef FPSTATE_LEGAL_H
#define FPSTATE_LEGAL_H

#include "core.h"

/* NULL, or what is wrong, in ``why`` (its bytes). */
const char *image_illegal(const char *image, size_t size, char *why, size_t why_size);

/* Load an image and save it at once in the arrangement of contexts, into ``area``, zeroed. The thread's vector
 * registers become initial, its control words stay. 0; -1: XRSTOR raised #GP; or an errno value. */
int image_through_registers(const char *image, size_t size, void *area);

#endif
