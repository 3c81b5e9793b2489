/* Two kernel threads that yield to each other, on one processor: all state, by the kernel. */
#include "peer.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

static atomic_bool running;
static atomic_ulong other_yields;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t started = PTHREAD_COND_INITIALIZER;

static void *body(void *none)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!atomic_load(&running))
            pthread_cond_wait(&started, &lock);
        pthread_mutex_unlock(&lock);
        while (atomic_load(&running)) {
            sched_yield();
            atomic_fetch_add(&other_yields, 1);
        }
    }
    return none;
}

static void start_other(void)
{
    unsigned long before = atomic_load(&other_yields);
    pthread_mutex_lock(&lock);
    atomic_store(&running, 1);
    pthread_cond_signal(&started);
    pthread_mutex_unlock(&lock);
    while (atomic_load(&other_yields) == before)
        sched_yield();
}

int main(void)
{
    enum { COUNT = 2000 };
    pthread_t thread;
    char line[64];
    FAIL_UNLESS(pthread_create(&thread, NULL, body, NULL) == 0);
    while (fgets(line, sizeof line, stdin)) {
        start_other();
        unsigned long before = atomic_load(&other_yields);
        double start = now_ns();
        for (unsigned long i = 0; i < COUNT; i++)
            sched_yield();
        double elapsed = now_ns() - start;
        unsigned long others = atomic_load(&other_yields) - before;
        atomic_store(&running, 0);
        /* a yield that came back without the other's having run was no switch */
        printf("%.4f\n", elapsed / (double)(2 * (others < COUNT ? others : COUNT) + 1));
        fflush(stdout);
    }
    return 0;
}
