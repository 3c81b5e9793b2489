/* Preloaded: undoes one thing that the core does for the way back from a guest, named by FPSTATE_UNDO. A negative control:
 * the guests of the table must show it. Signals that never end the run end it here, with 99. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { RSEQ = 334, ENDLESS = 100000, HEADER_AT = 512, PKRU_BIT = 9, LEAF_XSTATE = 0xD };

typedef void handler_type(int, siginfo_t *, void *);
static handler_type *inner[65];
static unsigned handled;

static int undone(const char *what)
{
    const char *chosen = getenv("FPSTATE_UNDO");
    return chosen && strcmp(chosen, what) == 0;
}

static uint32_t *pkru_of(ucontext_t *context)
{
    uint32_t size, offset, unused, leaf = LEAF_XSTATE, component = PKRU_BIT;
    __asm__("cpuid" : "=a"(size), "=b"(offset), "=c"(unused), "=d"(unused) : "a"(leaf), "c"(component));
    return (uint32_t *)((char *)context->uc_mcontext.fpregs + offset);
}

static void outer(int signal, siginfo_t *info, void *raw)
{
    ucontext_t *context = raw;
    greg_t segments = context->uc_mcontext.gregs[REG_CSGSFS];
    uint32_t pkru = undone("pkru") ? *pkru_of(context) : 0;
    if (++handled > ENDLESS)
        _exit(99);
    inner[signal](signal, info, raw);
    if (undone("cs"))
        context->uc_mcontext.gregs[REG_CSGSFS] = segments;
    if (undone("pkru"))
        *pkru_of(context) = pkru;
}

int sigaction(int signal, const struct sigaction *action, struct sigaction *earlier)
{
    int (*next)(int, const struct sigaction *, struct sigaction *) = dlsym(RTLD_NEXT, "sigaction");
    struct sigaction changed;
    if (action && action->sa_flags & SA_ONSTACK && action->sa_flags & SA_SIGINFO) {
        changed = *action;
        inner[signal] = action->sa_sigaction;
        changed.sa_sigaction = outer;
        action = &changed;
    }
    return next(signal, action, earlier);
}

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    long argument[6];
    va_list list;
    if (!next)
        next = dlsym(RTLD_NEXT, "syscall");
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        argument[i] = va_arg(list, long);
    va_end(list);
    if (number == RSEQ && undone("rseq")) {
        errno = ENOSYS;
        return -1;
    }
    return next(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
}
