/* Processes to look at. argv[1] says which; each prints "ready" once its threads are as they shall be. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syscall.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/prctl.h>
#include <unistd.h>

struct state {
    unsigned char ymm[16][32];
    unsigned char st[8][16];
    uint32_t mxcsr;
    uint16_t fcw;
    uint32_t avx;
};
_Static_assert(sizeof(struct state) == 512 + 128 + 12, "hold() counts on it");

/* Load everything, count this thread as ready, and sleep: system calls keep these registers. */
_Noreturn void hold(const struct state *state, int *ready);
__asm__(".globl hold\nhold:\n"
        "fninit\nfldcw 644(%rdi)\n"
        "fldt 624(%rdi)\nfldt 608(%rdi)\nfldt 592(%rdi)\nfldt 576(%rdi)\n"
        "fldt 560(%rdi)\nfldt 544(%rdi)\nfldt 528(%rdi)\nfldt 512(%rdi)\n"
        "cmpl $0, 648(%rdi)\nje 1f\n"
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nvmovdqu 32*\\r(%rdi), %ymm\\r\n.endr\njmp 2f\n"
        "1:\n.irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\nmovdqu 32*\\r(%rdi), %xmm\\r\n.endr\n"
        "2: ldmxcsr 640(%rdi)\nlock incl (%rsi)\n"
        "3: mov $34, %eax\nsyscall\njmp 3b\n");

/* Store what the registers hold, over and over: MXCSR, FCW, xmm8, ymm9's upper half. */
_Noreturn void report(void *shared, int avx);
__asm__(".globl report\nreport:\n"
        "1: stmxcsr (%rdi)\nfnstcw 8(%rdi)\nmovdqu %xmm8, 16(%rdi)\n"
        "test %esi, %esi\nje 2f\nvextractf128 $1, %ymm9, 32(%rdi)\n"
        "2: lock incq 64(%rdi)\npause\njmp 1b\n");

/* Store TILECFG, and with use also tmm0's rows, over and over. */
_Noreturn void report_tiles(void *shared, int use);
__asm__(".globl report_tiles\nreport_tiles:\nmov $64, %edx\n"
        "1: sttilecfg (%rdi)\ntest %esi, %esi\nje 2f\ntilestored %tmm0, 128(%rdi,%rdx,1)\n"
        "2: lock incq 64(%rdi)\npause\njmp 1b\n");

static struct state states[64];
static int ready;
static volatile uint64_t *shared;

/* 1: ask for the permission for TILEDATA, 2: use a tile besides, with one row of 64 bytes. */
static int take_tiles(int how)
{
    unsigned char configuration[64] = {[0] = 1, [16] = 64, [48] = 1};
    if (how >= 1 && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18L))
        return 1;
    if (how >= 2)
        __asm__ volatile("ldtilecfg %0\ntilezero %%tmm0" : : "m"(configuration));
    return 0;
}

static void say_ready(void)
{
    puts("ready");
    fflush(stdout);
}

static void *fill(void *argument)
{
    int t = (int)(intptr_t)argument;
    struct state *state = &states[t];
    char name[16];
    snprintf(name, sizeof name, "fill %d", t);
    prctl(PR_SET_NAME, name);
    for (int r = 0; r < 16; r++)
        for (int b = 0; b < 32; b++)
            state->ymm[r][b] = (unsigned char)(37 * t + 11 * r + 3 * b + 1);
    for (int i = 0; i < 8; i++) {
        long double value = 100 * t + i + 0.5L;
        memcpy(state->st[i], &value, 10);
    }
    state->mxcsr = 0x1f80u | (uint32_t)(t % 4) << 13;
    state->fcw = (uint16_t)(0x37f | t % 4 << 10);
    state->avx = (uint32_t)__builtin_cpu_supports("avx");
    hold(state, &ready);
}

static void *sleep_for_ever(void *argument)
{
    for (;;)
        pause();
    return argument;
}

static void start(void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 1 << 16);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int error;
    while ((error = pthread_create(&thread, &attributes, function, argument)) == EAGAIN)
        usleep(1000);
    if (error)
        abort();
    pthread_attr_destroy(&attributes);
}

static void *beget(void *argument)
{
    __atomic_add_fetch(&shared[0], 1, __ATOMIC_SEQ_CST);
    usleep(200);
    start(beget, argument);
    return NULL;
}

static void count(int signal)
{
    (void)signal;
    __atomic_add_fetch(&shared[0], 1, __ATOMIC_SEQ_CST);
}

static volatile sig_atomic_t stuck;

/* The child has the parent's memory, and lets it wait until the parent is killed. */
static void *vfork_for_ever(void *argument)
{
    if (vfork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        stuck = 1;
        for (;;)
            pause();
    }
    return sleep_for_ever(argument);
}

int main(int argc, char **argv)
{
    const char *what = argv[1];
    int threads = argc > 2 ? atoi(argv[2]) : 1;
    if (argc > 3) {
        int file = open(argv[3], O_RDWR);
        shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared == MAP_FAILED)
            return 1;
    }
    if (!strcmp(what, "fill")) {
        for (int t = 1; t <= threads; t++)
            start(fill, (void *)(intptr_t)t);
        while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < threads)
            usleep(1000);
    } else if (!strcmp(what, "report")) {
        say_ready();
        report((void *)shared, __builtin_cpu_supports("avx"));
    } else if (!strcmp(what, "tiles")) {
        if (take_tiles(threads))
            return 1;
        say_ready();
        report_tiles((void *)shared, threads == 2);
    } else if (!strcmp(what, "churn")) {
        for (int t = 0; t < threads; t++)
            start(beget, NULL);
    } else if (!strcmp(what, "count")) {
        signal(SIGRTMIN, count);
    } else if (!strcmp(what, "vfork")) {
        start(vfork_for_ever, NULL);
        while (!stuck)
            usleep(1000);
    } else {
        for (int t = 1; t < threads; t++)
            start(sleep_for_ever, NULL);
    }
    say_ready();
    if (!strcmp(what, "leaderless"))
        pthread_exit(NULL);
    sleep_for_ever(NULL);
}
