/* A caller's image into registers: copied, then checked, then loaded under the guard. */
#ifndef FPSTATE_CHECKED_LOAD_H
#define FPSTATE_CHECKED_LOAD_H

#include "types.h"

#include "private_copy.h"

/* What a legal image is for. Says how a restore was refused. */
typedef struct refusal checked_use(const struct private_copy *copy, void *data);

/* Give ``use`` a copy of the image in a buffer, if XRSTOR takes it; nothing of the copy stays behind, in memory. 0; below 0:
 * ImageError or RestoreFault is set; or an errno value. What was loaded is still in the registers where it is 0. */
int load_checked(const Py_buffer *image, checked_use *use, void *data);

#endif
