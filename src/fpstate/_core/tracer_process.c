/* The process that traces: how it is made, how the caller takes part, and that it is not the tracee. */
#include "tracer.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STACK_SIZE = 1 << 18 };

/* Trace from a process that shares this one's memory. This thread sleeps until it has ended (CLONE_VFORK), since it
 * lends it its thread-local storage. No exit signal: nobody waits for it by chance. */
static void *trace_apart(void *data)
{
    struct tracing *tracing = data;
    tracing->caller = getpid();
    char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    pid_t tracer = stack == MAP_FAILED
                       ? -1
                       : clone(tracing_trace, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_FS, tracing);
    if (tracer < 0)
        tracing->error = errno;
    else
        while (waitpid(tracer, NULL, __WALL) < 0 && errno == EINTR)
            ;
    if (stack != MAP_FAILED)
        munmap(stack, STACK_SIZE);
    sem_post(&tracing->stopped); /* in any case, so that nobody waits for ever */
    return NULL;
}

static int run_edit(struct tracing *tracing)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, trace_apart, tracing);
    if (error)
        return error;
    sem_wait(&tracing->stopped);
    if (tracing_can_edit(tracing))
        tracing->write = tracing->edit(tracing, tracing->tracees);
    sem_post(&tracing->edited);
    pthread_join(thread, NULL);
    return 0;
}

/* A process must not stop its own threads: one may hold the lock of the allocator that is used meanwhile. */
static bool is_own(pid_t tid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d", tid);
    return access(path, F_OK) == 0;
}

int tracing_run(struct tracing *tracing)
{
    sigset_t all, old;
    int error = 0;
    if (is_own(tracing->pid))
        return EPERM;
    sem_init(&tracing->stopped, 0, 0);
    sem_init(&tracing->edited, 0, 0);
    sigfillset(&all);
    /* Ctrl-C and Ctrl-Z wait: the tracing process inherits the mask. */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (tracing->edit)
        error = run_edit(tracing);
    else
        trace_apart(tracing);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    sem_destroy(&tracing->stopped);
    sem_destroy(&tracing->edited);
    return error;
}

void tracing_deinit(struct tracing *tracing)
{
    for (size_t i = 0; i < tracing->count; i++) {
        explicit_bzero(tracing->tracees[i].image, tracing->capacity);
        free(tracing->tracees[i].image);
    }
    free(tracing->tracees);
    if (tracing->after) {
        explicit_bzero(tracing->after, tracing->capacity);
        free(tracing->after);
    }
}
