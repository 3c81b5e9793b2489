/* Fibers over fpstate's C interface: each has a stack, and either a whole register state or control words of its own. */
#ifndef FIBERS_H
#define FIBERS_H

#include "fpstate.h"

#ifdef __cplusplus
extern "C" {
#endif

struct fiber {
    void *stack_pointer;     /* while it does not run */
    fpstate_context *state;  /* for fiber_switch; NULL where only fiber_switch_control is used */
    fpstate_control control; /* for fiber_switch_control */
};

/* A fiber that begins with run(argument), in the initial state, when it is switched to first. run must not return: it
 * switches away for good. The stack's top is at stack + size. */
void fiber_init(struct fiber *fiber, fpstate_context *state, void *stack, size_t size, void (*run)(void *),
                void *argument);

/* Leave `from`, which runs, for `to`. 0 once something has switched back, or an errno value: then nothing happened. */
int fiber_switch(const fpstate_api *api, struct fiber *from, struct fiber *to);         /* every register */
int fiber_switch_control(const fpstate_api *api, struct fiber *from, struct fiber *to); /* what the ABI keeps */

#ifdef __cplusplus
}
#endif

#endif
