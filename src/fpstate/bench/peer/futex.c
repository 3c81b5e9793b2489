/* Two kernel threads over a futex, on one processor: all state, by the kernel's XSAVES and XRSTORS. */
#include "peer.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int turn; /* 0: the main thread's, 1: the other's */

static void wait_for(int mine)
{
    int seen;
    while ((seen = atomic_load(&turn)) != mine)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void pass_to(int other)
{
    atomic_store(&turn, other);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *body(void *none)
{
    for (;;) {
        wait_for(1);
        pass_to(0);
    }
    return none;
}

static void switches(unsigned long count)
{
    for (unsigned long i = 0; i < count / 2; i++) {
        pass_to(1);
        wait_for(0);
    }
}

int main(void)
{
    pthread_t thread;
    FAIL_UNLESS(pthread_create(&thread, NULL, body, NULL) == 0);
    return serve(switches, 2000);
}
