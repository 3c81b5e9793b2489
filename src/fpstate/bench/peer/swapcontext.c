/* swapcontext: x87 environment and MXCSR, and a system call for the signal mask. */
#include "peer.h"

#include <ucontext.h>

static ucontext_t here, there;
static char stack[64 << 10] __attribute__((aligned(64)));

static void body(void)
{
    for (;;)
        swapcontext(&there, &here);
}

static void switches(unsigned long count)
{
    for (unsigned long i = 0; i < count / 2; i++)
        swapcontext(&here, &there);
}

int main(void)
{
    FAIL_UNLESS(getcontext(&there) == 0);
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = sizeof stack;
    makecontext(&there, body, 0);
    return serve(switches, 20000);
}
