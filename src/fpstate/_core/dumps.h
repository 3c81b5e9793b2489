/* Core dumps: whether they have the memory that holds states. */
#ifndef FPSTATE_DUMPS_H
#define FPSTATE_DUMPS_H

#include <stdbool.h>
#include <stddef.h>

/* Leave whole pages out of core dumps of this process (VmFlags dd), unless it was started with FPSTATE_DUMP_STATES=1;
 * false with errno where the kernel has no room for one more mapping. */
bool keep_from_dumps(void *start, size_t size);

#endif
