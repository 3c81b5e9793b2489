/* What a control-only switch keeps for compiled code, and what it does not. */
#include "fibers.h"

#include <errno.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FIBERS = 4, STACK_BYTES = 64 << 10 };
enum { MXCSR_CONTROLS = 0xFFC0, MXCSR_ROUNDING_SHIFT = 13, FCW_ROUNDING_SHIFT = 10 };
enum { PRECISION_MASKED_FCW = 0x20, ERROR_SUMMARY = 0x80 };

struct report {
    uint64_t switches, mismatches;
};

static uint32_t mxcsr_now(void)
{
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr;
}

static uint16_t fcw_now(void)
{
    uint16_t fcw;
    __asm__ volatile("fnstcw %0" : "=m"(fcw));
    return fcw;
}

/* Compilers move arithmetic over calls that change the rounding; they do not move a call. */
#define HERE_AND_NOW __attribute__((noinline))

HERE_AND_NOW static double by_sse(volatile double dividend, volatile double divisor)
{
    return dividend / divisor;
}

HERE_AND_NOW static long double by_x87(volatile long double dividend, volatile long double divisor)
{
    return dividend / divisor;
}

struct member {
    struct fiber fiber;
    struct set *set;
};
struct set {
    struct member members[FIBERS];
    struct fiber home;
    const fpstate_api *api;
    uint64_t rounds;
    struct report *report;
};

static void run(void *argument)
{
    struct member *self = (struct member *)argument;
    struct set *set = self->set;
    uint32_t mxcsr = self->fiber.control.mxcsr;
    uint16_t fcw = self->fiber.control.fcw;
    double third = by_sse(-1, 3);
    long double long_third = by_x87(-1, 3);
    for (uint64_t i = 0;; i++) {
        uint64_t to = (uint64_t)(self - set->members) + 1 + i % (FIBERS - 1);
        struct fiber *next = set->report->switches++ < set->rounds ? &set->members[to % FIBERS].fiber : &set->home;
        fiber_switch_control(set->api, &self->fiber, next);
        int same = (mxcsr_now() & MXCSR_CONTROLS) == (mxcsr & MXCSR_CONTROLS) && fcw_now() == fcw;
        set->report->mismatches += !same || by_sse(-1, 3) != third || by_x87(-1, 3) != long_third;
    }
}

static int forget(fpstate_control *from, const fpstate_control *to)
{
    (void)from;
    (void)to;
    return 0;
}

/* Fibers with every rounding, opposite ones in MXCSR and FCW; `broken`: the switch does nothing. */
int check_controls(const fpstate_api *given, uint64_t broken, uint64_t rounds, struct report *report)
{
    fpstate_api api = *given;
    struct set set;
    char *stacks = (char *)malloc(FIBERS * STACK_BYTES);
    if (!stacks)
        return ENOMEM;
    if (broken)
        api.switch_control = forget;
    report->switches = report->mismatches = 0;
    set.api = &api;
    set.rounds = rounds;
    set.report = report;
    for (int i = 0; i < FIBERS; i++) {
        struct member *member = &set.members[i];
        fiber_init(&member->fiber, NULL, stacks + i * STACK_BYTES, STACK_BYTES, run, member);
        member->fiber.control.mxcsr |= (uint32_t)i << MXCSR_ROUNDING_SHIFT;
        member->fiber.control.fcw |= (uint16_t)((FIBERS - 1 - i) << FCW_ROUNDING_SHIFT);
        member->set = &set;
    }
    uint32_t mxcsr = mxcsr_now();
    uint16_t fcw = fcw_now();
    int error = fiber_switch_control(&api, &set.home, &set.members[0].fiber);
    report->mismatches += !broken && ((mxcsr_now() & MXCSR_CONTROLS) != (mxcsr & MXCSR_CONTROLS) || fcw_now() != fcw);
    free(stacks);
    return error;
}

/* Whether an inexact result here raises x87's error summary after a switch to control words that unmask it. */
int x87_status_travels(const fpstate_api *api)
{
    fpstate_control home, strict = {FPSTATE_MXCSR_INITIAL, FPSTATE_FCW_INITIAL & ~PRECISION_MASKED_FCW, 0};
    uint16_t status;
    by_x87(1, 3);
    if (api->switch_control(&home, &strict))
        return -1;
    __asm__ volatile("fnstsw %0\n\tfnclex" : "=m"(status));
    api->switch_control(&strict, &home);
    return (status & ERROR_SUMMARY) != 0;
}

/* 0 where an MXCSR with reserved bits is refused, and nothing changed. */
int accepts_reserved_bits(const fpstate_api *api)
{
    fpstate_control from = {1, 2, 3};
    const fpstate_control to = {0xFFFF0000u | FPSTATE_MXCSR_INITIAL, FPSTATE_FCW_INITIAL, 0};
    uint32_t mxcsr = mxcsr_now();
    int refused = api->switch_control(&from, &to) == EINVAL && from.mxcsr == 1 && from.fcw == 2 && from.reserved == 3;
    return !(refused && mxcsr_now() == mxcsr);
}

#ifdef __cplusplus
}
#endif
