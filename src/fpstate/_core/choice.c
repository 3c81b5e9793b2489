/* Which core switches: decided once, at the first use. */
#include "cores.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

const struct core *chosen_core;
static const char *refusal = "";
static int error;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const struct core compacted = {"portable", 0, portable_save, portable_load, portable_exchange, NULL, NULL};
static const struct core standard = {"portable", 0, standard_save, portable_load, standard_exchange, NULL, NULL};

const struct core *portable_core(void)
{
    return processor()->xsavec ? &compacted : &standard;
}

static void choose(void)
{
    if (!processor()->xcr0) {
        refusal = "XSAVE (CPUID.1:ECX[27], OSXSAVE)";
        error = ENOTSUP;
        return;
    }
    chosen_core = portable_core();
}

int core_ready(void)
{
    pthread_once(&once, choose);
    return error;
}

const char *core_refusal(void)
{
    return refusal;
}
