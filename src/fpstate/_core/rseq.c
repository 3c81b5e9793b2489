/* Restartable sequences: where glibc registered one, the kernel reads and writes its thread's area at every signal and
 * after every preemption, with the rights that PKRU gives at that moment. A guest that has closed key 0 would meet a
 * SIGSEGV at such a moment that is none of its own. So while guests run on a processor with protection keys, the
 * thread has no area. Nothing needs it then: sched_getcpu asks the kernel instead. */
#include "core.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_rseq
#define SYS_rseq 334
#endif
enum { UNREGISTER = 1, SIGNATURE = 0x53053053 }; /* glibc, sysdeps/unix/sysv/linux/x86/bits/rseq.h */
enum { LEAST = 32, MOST = 512 };                 /* bytes: its size must be named exactly, and differs by version */

static pthread_once_t found_once = PTHREAD_ONCE_INIT;
static const ptrdiff_t *offset; /* from the thread pointer; glibc 2.35 and later say it */
static const unsigned *registered_size;

static void find(void)
{
    offset = dlsym(RTLD_DEFAULT, "__rseq_offset");
    registered_size = dlsym(RTLD_DEFAULT, "__rseq_size"); /* 0: glibc was told not to register */
}

static void *area_of_thread(void)
{
    pthread_once(&found_once, find);
    return offset && registered_size && *registered_size ? (char *)__builtin_thread_pointer() + *offset : NULL;
}

void rseq_leave(struct carrier *carrier)
{
    void *area = area_of_thread();
    carrier->rseq_size = 0;
    for (uint32_t size = LEAST; area && size <= MOST; size += LEAST)
        if (syscall(SYS_rseq, area, size, UNREGISTER, SIGNATURE) == 0) {
            carrier->rseq_size = size;
            return;
        }
}

void rseq_come_back(const struct carrier *carrier)
{
    if (carrier->rseq_size)
        syscall(SYS_rseq, area_of_thread(), carrier->rseq_size, 0, SIGNATURE);
}
