/* A thread holds patterns in zmm20, k3 and x87 while the handler of a signal switches between two contexts. */
#define _GNU_SOURCE
#include "fpstate.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

enum { MILLION = 1000000 };

static const fpstate_api *api;
static fpstate_context *one, *other;
static volatile long handled, refused;
static int spoils; /* the negative control: change what sigreturn brings back */

static void on_alarm(int signal, siginfo_t *info, void *raw)
{
    (void)signal;
    (void)info;
    handled++;
    if (api->switch_state(one, other) || api->switch_state(other, one))
        refused++;
    if (spoils)
        ((ucontext_t *)raw)->uc_mcontext.fpregs->_st[0].significand[0] ^= 1;
}

static fpstate_context *in_storage(void)
{
    size_t alignment = api->context_alignment(), size = (api->context_size() + alignment - 1) / alignment * alignment;
    fpstate_context *context = NULL;
    void *memory = aligned_alloc(alignment, size);
    return memory && !api->create_in(memory, size, &context) ? context : NULL;
}

static uint64_t now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * MILLION + (uint64_t)time.tv_nsec / 1000;
}

/* Whether what was put into the registers is lost after some time. Compiled without AVX-512, whose registers the compiler
 * then leaves alone, so that they need not be named as clobbered. */
static int lost(int wide)
{
    uint64_t kept[8], found[8], k = 0;
    long double pi = 0;
    for (int i = 0; i < 8; i++)
        kept[i] = (uint64_t)rand() * 0x9E3779B97F4A7C15ull;
    if (wide) {
        __asm__ volatile("vmovdqu64 (%2), %%zmm20\n kmovq (%2), %%k3\n fldpi\n mov $100000, %%rcx\n"
                         "1: dec %%rcx\n jnz 1b\n fstpt %1\n vmovdqu64 %%zmm20, (%3)\n kmovq %%k3, %0"
                         : "=&r"(k), "+m"(pi) : "r"(kept), "r"(found) : "rcx", "memory", "st");
    } else {
        __asm__ volatile("movdqu (%2), %%xmm5\n fldpi\n mov $100000, %%rcx\n"
                         "1: dec %%rcx\n jnz 1b\n fstpt %1\n movdqu %%xmm5, (%3)\n mov (%2), %0"
                         : "=&r"(k), "+m"(pi) : "r"(kept), "r"(found) : "rcx", "memory", "xmm5", "st");
    }
    uint64_t significand;
    memcpy(&significand, &pi, sizeof significand);
    return memcmp(kept, found, wide ? 64 : 16) || k != kept[0] || significand != 0xC90FDAA22168C235ull;
}

/* Returns how often something was lost or refused; `count` handlers are asked for, and come where there is time. */
long switch_in_handlers(const fpstate_api *table, long count, long seconds, int wide, int spoil, long *handlers)
{
    api = table;
    spoils = spoil;
    handled = refused = 0;
    one = in_storage();
    other = in_storage();
    if (!one || !other)
        return -1;
    struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO}, before;
    struct itimerval often = {{0, 60}, {0, 60}}, never = {{0, 0}, {0, 0}};
    long wrong = 0;
    uint64_t end = now_us() + (uint64_t)seconds * MILLION;
    sigaction(SIGALRM, &action, &before);
    setitimer(ITIMER_REAL, &often, NULL);
    while (handled < count && now_us() < end)
        wrong += lost(wide);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &before, NULL);
    *handlers = handled;
    return wrong + refused;
}
