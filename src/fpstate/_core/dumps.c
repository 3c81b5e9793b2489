/* A core dump travels: to a crash service, into a bug report. The registers of its threads are in it, and nothing can
 * keep them from it; the states of all other contexts need not be. */
#include "dumps.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static bool dumped;

/* Read once, and here: getenv may use vector registers, and the shelves, which ask, must not. */
__attribute__((constructor)) static void read_setting(void)
{
    const char *setting = getenv("FPSTATE_DUMP_STATES");
    dumped = setting && *setting && strcmp(setting, "0");
}

bool keep_from_dumps(void *start, size_t size)
{
    return dumped || !madvise(start, size, MADV_DONTDUMP);
}
