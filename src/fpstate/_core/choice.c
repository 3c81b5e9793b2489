/* Which core switches: decided once, at the first use. The environment's word counts first; then a core must pass its
 * trial in every pair of states, and be faster. */
#include "choice.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 50, REPEATS = 12, PERMILLE = 1000, FASTER = 900, SLOWER_NOWHERE = 1050 };
#define SELF_TEST_SEED 0xF9u

const struct core *chosen_core;
static struct choice chosen;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const struct core compacted = {"portable", 0, portable_save, portable_load, portable_exchange, NULL, NULL};
static const struct core standard = {"portable", 0, standard_save, portable_load, standard_exchange, NULL, NULL};
#define CORE(label, name, needs) \
    {label, needs, name##_save, name##_load, name##_exchange, name##_store, name##_load_checked}
static const struct core fast_cores[] = {
    CORE("fast", fast_avx512, X87 | SSE | AVX | AVX512),
    CORE("fast", fast_avx, X87 | SSE | AVX),
};
/* For tests, by name alone. */
static const struct core named_cores[] = {
    {"portable-xsave", 0, standard_save, portable_load, standard_exchange, NULL, NULL},
    CORE("fast-avx512", fast_avx512, X87 | SSE | AVX | AVX512),
    CORE("fast-avx", fast_avx, X87 | SSE | AVX),
    CORE("without-k1-to-k7", sabotaged_opmask, X87 | SSE | AVX | AVX512),
    CORE("without-mxcsr", sabotaged_mxcsr, X87 | SSE | AVX | AVX512),
    CORE("without-mxcsr-avx", sabotaged_mxcsr_avx, X87 | SSE | AVX),
    CORE("without-x87-end", sabotaged_x87, X87 | SSE | AVX | AVX512),
    CORE("without-x87-end-avx", sabotaged_x87_avx, X87 | SSE | AVX),
};

const struct core *portable_core(void)
{
    return processor()->xsavec ? &compacted : &standard;
}

static bool can_run(const struct core *core)
{
    return !core->needs || (!(core->needs & ~whole()->moves) && processor()->xgetbv1);
}

static const struct core *fast_core(void)
{
    for (size_t i = 0; i < sizeof fast_cores / sizeof *fast_cores; i++)
        if (can_run(&fast_cores[i]))
            return &fast_cores[i];
    return NULL;
}

const struct core *core_named(const char *name)
{
    if (strcmp(name, "portable") == 0)
        return portable_core();
    if (strcmp(name, "fast") == 0)
        return fast_core();
    for (size_t i = 0; i < sizeof named_cores / sizeof *named_cores; i++)
        if (strcmp(name, named_cores[i].name) == 0)
            return can_run(&named_cores[i]) ? &named_cores[i] : NULL;
    return NULL;
}

static bool lacks(struct choice *choice)
{
    const char *missing = NULL;
    if (!processor()->xgetbv1)
        missing = "XGETBV with ECX=1 (CPUID.(0DH,1):EAX[2])";
    else if (!processor()->pointers_restored)
        missing = "saves that keep x87's pointers apart (CPUID.80000008H:EBX[2])";
    else if (!(whole()->moves & AVX))
        missing = "AVX (CPUID.1:ECX[28], XCR0[2])";
    if (missing)
        snprintf(choice->reason, sizeof choice->reason, "the fast core needs %s", missing);
    return missing;
}

static bool absent(const struct core *candidate, struct choice *choice)
{
    if (lacks(choice))
        return true;
    if (!candidate)
        snprintf(choice->reason, sizeof choice->reason, "no fast core of this name can run here");
    return !candidate;
}

static bool fails_its_trial(struct trial *trial, const struct core *core, struct choice *choice)
{
    struct trial_report *report = &choice->report;
    struct arrangement arrangement = *whole();
    arrangement.moves &= core->needs;
    trial_every_pair(trial, core, &arrangement, report);
    if (!report->mismatches)
        return false;
    snprintf(choice->reason, sizeof choice->reason,
             "the self-test refused the fast core: %llu of %llu switches went wrong, the first from in-use %#llx to "
             "%#llx in component %u of what was %s",
             (unsigned long long)report->mismatches, (unsigned long long)report->pairs,
             (unsigned long long)report->from, (unsigned long long)report->to, report->component,
             report->saved ? "saved" : "loaded");
    return true;
}

/* What a glibc process has in use, everything but x87, everything. */
static const uint64_t classes[MEASURED] = {SSE | OPMASK | HI16_ZMM, SSE | AVX | AVX512, X87 | SSE | AVX | AVX512};

static void measure(struct trial *trial, const struct core *core, struct choice *choice)
{
    for (int i = 0; i < MEASURED; i++) {
        uint64_t in_use = classes[i] & processor()->managed_mask, best[2] = {UINT64_MAX, UINT64_MAX};
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            for (int which = 0; which < 2; which++) {
                uint64_t settled, cycles = trial_cycles(trial, which ? core : portable_core(), in_use, in_use, ROUNDS,
                                                        &settled);
                choice->settled[i] = settled & processor()->managed_mask; /* in the end that of the fast core */
                best[which] = cycles < best[which] ? cycles : best[which];
            }
        }
        choice->permille[i] = (uint32_t)(best[1] * PERMILLE / (best[0] ? best[0] : 1));
    }
}

static bool faster(const struct choice *choice)
{
    for (int i = 0; i < MEASURED; i++)
        if (choice->permille[i] > SLOWER_NOWHERE)
            return false;
    return choice->permille[0] < FASTER && choice->permille[1] < FASTER;
}

static void try_candidate(const struct core *candidate, bool forced, struct choice *choice)
{
    struct trial *trial = trial_open(SELF_TEST_SEED);
    if (!trial) {
        choice->error = forced ? ENOMEM : 0;
        snprintf(choice->reason, sizeof choice->reason, "no memory for the self-test");
        return;
    }
    uint64_t start = __builtin_ia32_rdtsc();
    bool refused = fails_its_trial(trial, candidate, choice);
    choice->test_cycles = __builtin_ia32_rdtsc() - start;
    if (!refused) {
        start = __builtin_ia32_rdtsc();
        measure(trial, candidate, choice);
        choice->measure_cycles = __builtin_ia32_rdtsc() - start;
    }
    trial_close(trial);
    if (refused) {
        choice->error = forced ? ENOTSUP : 0;
    } else if (forced || faster(choice)) {
        choice->core = candidate;
        snprintf(choice->reason, sizeof choice->reason, "%s",
                 forced ? "FPSTATE_CORE=fast; it passed its self-test" : "it passed its self-test, and is the faster one");
    } else {
        snprintf(choice->reason, sizeof choice->reason, "the fast core passed its self-test and is not faster here");
    }
}

/* The environment may hold any bytes; a reason is text. */
static void refuse_setting(const char *setting, struct choice *choice)
{
    char shown[41];
    size_t length = 0;
    for (; length < sizeof shown - 1 && setting[length]; length++)
        shown[length] = setting[length] >= ' ' && setting[length] <= '~' ? setting[length] : '?';
    shown[length] = 0;
    snprintf(choice->reason, sizeof choice->reason, "FPSTATE_CORE is '%s'; it may be portable or fast", shown);
}

void core_choose(const char *setting, const struct core *candidate, struct choice *choice)
{
    *choice = (struct choice){.core = portable_core()};
    if (!processor()->xcr0) {
        choice->error = ENOTSUP;
        snprintf(choice->reason, sizeof choice->reason, "XSAVE (CPUID.1:ECX[27], OSXSAVE)");
        return;
    }
    bool forced = setting && strcmp(setting, "fast") == 0;
    if (setting && strcmp(setting, "portable") == 0) {
        snprintf(choice->reason, sizeof choice->reason, "FPSTATE_CORE=portable");
    } else if (setting && !forced) {
        choice->error = EINVAL;
        refuse_setting(setting, choice);
    } else if (absent(candidate, choice)) {
        choice->error = forced ? ENOTSUP : 0;
    } else {
        try_candidate(candidate, forced, choice);
    }
}

static void choose(void)
{
    const char *setting = getenv("FPSTATE_CORE");
    core_choose(setting && *setting ? setting : NULL, fast_core(), &chosen);
    chosen_core = chosen.core;
    if (!chosen.error)
        x87_clear_dead();
}

int core_ready(void)
{
    pthread_once(&once, choose);
    return chosen.error;
}

const struct choice *core_choice(void)
{
    core_ready();
    return &chosen;
}

/* What was not tried at start-up, because the environment said portable, is tried now. */
static bool passes(const struct core *core)
{
    static struct choice tried;
    if (chosen.report.pairs)
        return !chosen.report.mismatches;
    if (!tried.report.pairs)
        core_choose("fast", core, &tried);
    return tried.core == core;
}

int core_use(const char *name)
{
    int error = core_ready();
    const struct core *core = core_named(name);
    if (error)
        return error;
    if (core != portable_core() && core != fast_core())
        return EINVAL;
    if (!core || (core != portable_core() && !passes(core)))
        return ENOTSUP;
    chosen_core = core;
    return 0;
}
