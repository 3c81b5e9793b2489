/* The ways to save and load a state: two cores with one meaning, and which of them was chosen. */
#ifndef FPSTATE_CORES_H
#define FPSTATE_CORES_H

#include "arrangement.h"

/* An area holds a legal image, or zeros for a save to start from. Saves return what was in use: XSTATE_BV of the
 * image. A load covers everything managed, so that nothing of what was in the registers stays. */
struct core {
    const char *name;
    uint64_t needs; /* components that it has moves for, and cannot run without */
    uint64_t (*save)(void *area, const struct arrangement *arrangement);
    void (*load)(const void *area, const struct arrangement *arrangement);
    /* Both; ``in_use`` is told before the load. Returns 0, so that a switch ends in a jump to it. */
    int (*exchange)(void *from, const void *to, const struct arrangement *from_arrangement,
                    const struct arrangement *to_arrangement, uint64_t *in_use);
    /* For the trampoline, which has read XGETBV(1) itself; NULL in the portable core. */
    void (*store)(void *area, const struct arrangement *arrangement, uint64_t in_use);
    uint64_t (*load_checked)(const void *area, const struct arrangement *arrangement, uint64_t in_use);
};

#define DECLARE_CORE(name)                                                                                             \
    uint64_t name##_save(void *, const struct arrangement *);                                                          \
    void name##_load(const void *, const struct arrangement *);                                                        \
    int name##_exchange(void *, const void *, const struct arrangement *, const struct arrangement *, uint64_t *);     \
    void name##_store(void *, const struct arrangement *, uint64_t);                                                   \
    uint64_t name##_load_checked(const void *, const struct arrangement *, uint64_t)
DECLARE_CORE(fast_avx512);
DECLARE_CORE(fast_avx);
DECLARE_CORE(sabotaged_opmask);
DECLARE_CORE(sabotaged_mxcsr);
DECLARE_CORE(sabotaged_mxcsr_avx);
DECLARE_CORE(sabotaged_x87);
DECLARE_CORE(sabotaged_x87_avx);
uint64_t portable_save(void *, const struct arrangement *);
void portable_load(const void *, const struct arrangement *);
int portable_exchange(void *, const void *, const struct arrangement *, const struct arrangement *, uint64_t *);
uint64_t standard_save(void *, const struct arrangement *);
int standard_exchange(void *, const void *, const struct arrangement *, const struct arrangement *, uint64_t *);

extern const struct core *chosen_core; /* valid once core_ready() has returned 0 */

const struct core *portable_core(void);
const struct core *core_named(const char *name); /* NULL: no such core, or not here */

/* Choose at the first call, by FPSTATE_CORE or by trial and measurement. 0, ENOTSUP, ENOMEM, or EINVAL for what the
 * variable holds; choice.h tells why. */
int core_ready(void);
/* Let the other core be the chosen one, where it can be. 0, ENOTSUP, or EINVAL for a name. */
int core_use(const char *name);

#endif
