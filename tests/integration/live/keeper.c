/* keeper N: N threads, each of which holds a pattern in vector registers, an opmask register (with AVX-512) and x87, sleeps
 * in the kernel, and compares. SIGRTMIN is counted. "ready" at the start; at SIGTERM "got SIGNALS bad ROUNDS rounds ROUNDS". */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static atomic_long got, bad, rounds;
static volatile sig_atomic_t stop;
static const struct timespec pause_time = {0, 200000};

static void count(int number)
{
    (void)number;
    got++;
}

static void end(int number)
{
    (void)number;
    stop = 1;
}

#define SLEEP "mov %[call], %%eax\n lea %[time], %%rdi\n xor %%esi, %%esi\n syscall\n"
#define INPUTS [a] "r"(a), [b] "r"(b), [seed] "r"(seed), [call] "i"(SYS_nanosleep), [time] "m"(pause_time)

__attribute__((target("avx512bw"))) static int differs_512(const uint64_t *a, uint64_t *b, uint64_t seed)
{
    uint64_t mask = 0;
    __asm__ volatile("vmovdqu64 (%[a]), %%zmm17\n kmovq %[seed], %%k5\n" SLEEP
                     "vmovdqu64 %%zmm17, (%[b])\n kmovq %%k5, %[mask]\n"
                     : [mask] "+&r"(mask)
                     : INPUTS
                     : "rax", "rcx", "rdi", "rsi", "r11", "memory", "xmm17", "k5");
    return memcmp(a, b, 64) || mask != seed;
}

static int differs_128(const uint64_t *a, uint64_t *b, uint64_t seed)
{
    uint64_t high = 0;
    __asm__ volatile("movdqu (%[a]), %%xmm7\n movq %[seed], %%xmm9\n" SLEEP
                     "movdqu %%xmm7, (%[b])\n movq %%xmm9, %[high]\n"
                     : [high] "+&r"(high)
                     : INPUTS
                     : "rax", "rcx", "rdi", "rsi", "r11", "memory", "xmm7", "xmm9");
    return memcmp(a, b, 16) || high != seed;
}

static void *keep(void *number)
{
    uint64_t seed = (uint64_t)number * 0x9E3779B97F4A7C15ull + 1, a[8], b[8];
    int wide = __builtin_cpu_supports("avx512bw");
    for (int i = 0; i < 8; i++)
        a[i] = seed * (uint64_t)(i + 3);
    while (!stop) {
        double one = (double)(seed >> 12);
        uint64_t st0 = 0;
        memset(b, 0, sizeof b);
        __asm__ volatile("fldl %0" : : "m"(one));
        bad += wide ? differs_512(a, b, seed) : differs_128(a, b, seed);
        __asm__ volatile("fstpl %0" : "=m"(st0));
        bad += memcmp(&st0, &one, sizeof one) != 0;
        rounds++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long threads = argc > 1 ? atol(argv[1]) : 4;
    pthread_attr_t attributes;
    signal(SIGRTMIN, count);
    signal(SIGTERM, end);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, keep, (void *)i))
            return 1;
    }
    puts("ready");
    fflush(stdout);
    while (!stop)
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    usleep(200000);
    printf("got %ld bad %ld rounds %ld\n", (long)got, (long)bad, (long)rounds);
    fflush(stdout);
    _exit(0);
}
