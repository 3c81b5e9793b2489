/* A host for one guest program, as small as the contract allows: no preemption, no switching.
 *
 *   guest_host IMAGE SEED ARGUMENT FEATURES [-e ENTRY] [-i HEX] [-t] [-p REGISTER VALUE]... [-c WHEN OFFSET MASK]...
 *              [-s REGISTER SIZE]
 *
 * -e gives the offset of the entry, 0 unless told; -i puts bytes into the input area; -c flips the bits of MASK (64 bits) at OFFSET of the saved
 * XSAVE frame, or with OFFSET "rbx" of that register, or with "pkru", "tilecfg+BYTE" and "tiles+BYTE" of those, at the
 * WHENth yield through the port or gs. -t lets tile and PKRU instructions that this processor refuses run in software,
 * and asks Linux for tiles where it has them; -p gives a byte of one of these a value before the start, as a
 * context before may have left it, and -s flips one bit of each byte of it, one after the other, from one yield to the
 * next; both only in software.
 * Prints "operation N", "signal N", "yields N", "nanoseconds N", "block ADDRESS", "rsp ADDRESS"
 * and "result HEX". */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "fpstate_guest.h"
#include "tile_emulator.h"

enum { MEMORY = 1 << 20, PAGE = 4096, CHANGES = 8, WATCHDOG_SECONDS = 20 };

struct change {
    long when;
    long offset; /* in the XSAVE frame or in the register, or -1 for rbx */
    int component; /* whose register, or 0 */
    uint64_t mask;
};

enum { PKRU = 9, TILECFG = 17, TILEDATA = 18, REQUEST_PERMISSION = 0x1023 };
enum { FRAME_FEATURES = 472 }; /* sw_reserved.xfeatures (asm/sigcontext.h) */
static const struct {
    const char *name;
    int component;
} registers_by_name[] = {{"pkru", PKRU}, {"tilecfg", TILECFG}, {"tiles", TILEDATA}};
static int with_tiles;
static unsigned char *swept;
static long sweep_size;

static struct change changes[CHANGES];
static int change_count;
static sigjmp_buf left;
static volatile long yields;
static volatile int left_operation = -1, left_signal;
static uint64_t exit_slot[1];

/* XSTATE_BV 0: everything becomes initial. XRSTOR may read as far as the largest component reaches. */
__attribute__((used, aligned(64))) static const struct { uint32_t before[6], mxcsr, behind[4089]; }
    initial_state __asm__("initial_state") = {.mxcsr = 0x1f80};

__asm__(".globl exit_routine\n"
        "exit_routine: out %eax, $0xF5\n"
        "  ret\n"
        ".globl enter\n" /* enter(entry, block, rsp, has_xsave): never returns */
        "enter: mov %rdx, %rsp\n"
        "  push $0\n"
        "  fninit\n"
        "  test %ecx, %ecx\n"
        "  jz 1f\n"
        "  mov $~0x200, %eax\n" /* all but PKRU, whose initial value is not the system's */
        "  mov $-1, %edx\n"
        "  xrstor64 initial_state(%rip)\n"
        "1: pushq $0x1f80\n"
        "  ldmxcsr (%rsp)\n"
        "  add $8, %rsp\n"
        "  mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  pushq %rax\n"
        "  pushq $0x202\n"
        "  mov $0, %eax\n  mov $0, %ebx\n  mov $0, %ecx\n  mov $0, %edx\n"
        "  mov $0, %esi\n  mov $0, %ebp\n"
        "  mov $0, %r8d\n  mov $0, %r9d\n  mov $0, %r10d\n  mov $0, %r11d\n"
        "  mov $0, %r12d\n  mov $0, %r13d\n  mov $0, %r14d\n  mov $0, %r15d\n"
        "  popfq\n"
        "  ret\n");
extern char exit_routine[];
__attribute__((noreturn)) void enter(void *entry, void *block, void *rsp, int has_xsave);

static unsigned char *emulated_register(int component)
{
    switch (component) {
    case PKRU:
        return (unsigned char *)&emulated.pkru;
    case TILECFG:
        return emulated.configuration;
    default:
        return &emulated.tiles[0][0][0];
    }
}

/* In the frame where this processor has the component, else in the emulator. */
static unsigned char *place_of(int component, unsigned char *frame)
{
    unsigned eax, ebx, ecx, edx;
    uint64_t features;
    memcpy(&features, frame + FRAME_FEATURES, sizeof features);
    if (!(features >> component & 1))
        return emulated_register(component);
    __cpuid_count(0xD, component, eax, ebx, ecx, edx);
    return frame + ebx;
}

static void sweep(void)
{
    if (yields >= 2 && yields <= sweep_size + 1)
        swept[yields - 2] ^= 1;
    if (yields <= sweep_size)
        swept[yields - 1] ^= 1;
}

static void change_state(ucontext_t *context)
{
    if (swept)
        sweep();
    for (int i = 0; i < change_count; i++) {
        if (changes[i].when != yields)
            continue;
        if (changes[i].offset < 0) {
            context->uc_mcontext.gregs[REG_RBX] ^= (long long)changes[i].mask;
            continue;
        }
        unsigned char *frame = (unsigned char *)context->uc_mcontext.fpregs;
        unsigned char *at = changes[i].component ? place_of(changes[i].component, frame) : frame;
        uint64_t word;
        memcpy(&word, at + changes[i].offset, 8);
        word ^= changes[i].mask;
        memcpy(at + changes[i].offset, &word, 8);
    }
}

static void on_signal(int signal, siginfo_t *information, void *argument)
{
    /* Linux hands a handler the interrupted AC flag, and compiled code reads misaligned words */
    __asm__ volatile("pushfq\n\t"
                     "andl $~0x40000, (%%rsp)\n\t"
                     "popfq" ::: "cc", "memory");
    ucontext_t *context = argument;
    greg_t *registers = context->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];

    (void)information;
    if (signal == SIGSEGV && registers[REG_TRAPNO] == 13 && code && code[0] == 0xE7 && code[1] == FPSTATE_PORT) {
        uint32_t operation = (uint32_t)registers[REG_RAX];
        if (operation == FPSTATE_YIELD) {
            yields++;
            change_state(context);
            registers[REG_RIP] += 2;
            return;
        }
        left_operation = (int)operation;
    } else if (signal == SIGILL && with_tiles) {
        switch (emulate(context)) {
        case EMULATED:
            return;
        case RAISES_GP:
            left_signal = SIGSEGV;
            break;
        default:
            left_signal = SIGILL;
        }
    } else {
        left_signal = signal;
    }
    siglongjmp(left, 1);
}

static void *check(void *pointer, const char *what)
{
    if (pointer == MAP_FAILED || pointer == NULL) {
        perror(what);
        exit(2);
    }
    return pointer;
}

static int has_xsave(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_OSXSAVE);
}

static void load(const char *path, unsigned char *memory)
{
    int file = open(path, O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0 || status.st_size > MEMORY / 2 ||
        read(file, memory, (size_t)status.st_size) != status.st_size) {
        perror(path);
        exit(2);
    }
    close(file);
}

/* Which register a name such as "tiles+17" is of, and which byte; 0 for none. */
static int named_register(const char *name, long *byte)
{
    size_t length = strcspn(name, "+");
    *byte = name[length] ? strtol(name + length + 1, NULL, 0) : 0;
    for (size_t i = 0; i < sizeof registers_by_name / sizeof *registers_by_name; i++)
        if (strlen(registers_by_name[i].name) == length && strncmp(registers_by_name[i].name, name, length) == 0)
            return registers_by_name[i].component;
    return 0;
}

static int enabled(int component)
{
    unsigned low, high;
    if (!has_xsave())
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low >> component & 1;
}

static void provide_tiles(unsigned char *code, size_t size)
{
    if (!enabled(TILEDATA))
        intercept_xsavec(code, size);
    else if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILEDATA) != 0)
        check(NULL, "permission for TILEDATA");
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    unsigned char *memory = check(mmap(NULL, MEMORY, PROT_READ | PROT_WRITE | PROT_EXEC,
                                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    load(argv[1], memory);
    struct fpstate_block *block = (struct fpstate_block *)(memory + MEMORY - PAGE);
    block->magic = FPSTATE_MAGIC_VALUE;
    block->seed = strtoull(argv[2], NULL, 0);
    block->argument = strtoull(argv[3], NULL, 0);
    block->features = strtoull(argv[4], NULL, 0);
    size_t entry = 0;
    for (int i = 5; i < argc;) {
        if (strcmp(argv[i], "-e") == 0 && i + 1 < argc) {
            entry = strtoull(argv[i + 1], NULL, 0);
            i += 2;
            continue;
        }
        if (strcmp(argv[i], "-i") == 0 && i + 1 < argc) {
            const char *hex = argv[i + 1];
            for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2)
                block->input[block->input_size++] = (unsigned char)byte;
            i += 2;
        } else if (strcmp(argv[i], "-t") == 0) {
            with_tiles = 1;
            i++;
        } else if (strcmp(argv[i], "-p") == 0 && i + 2 < argc) {
            long byte;
            int component = named_register(argv[i + 1], &byte);
            if (!component || enabled(component))
                return 2;
            emulated_register(component)[byte] = (unsigned char)strtol(argv[i + 2], NULL, 0);
            emulated.in_use |= component == TILEDATA;
            i += 3;
        } else if (strcmp(argv[i], "-s") == 0 && i + 2 < argc) {
            long byte;
            int component = named_register(argv[i + 1], &byte);
            if (!component || enabled(component))
                return 2;
            swept = emulated_register(component);
            sweep_size = strtol(argv[i + 2], NULL, 0);
            i += 3;
        } else if (strcmp(argv[i], "-c") == 0 && i + 3 < argc && change_count < CHANGES) {
            struct change *change = &changes[change_count];
            change->when = strtol(argv[i + 1], NULL, 0);
            change->component = named_register(argv[i + 2], &change->offset);
            if (!change->component)
                change->offset = strcmp(argv[i + 2], "rbx") ? strtol(argv[i + 2], NULL, 0) : -1;
            changes[change_count++].mask = strtoull(argv[i + 3], NULL, 0);
            i += 4;
        } else {
            return 2;
        }
    }

    if (with_tiles)
        provide_tiles(memory, MEMORY / 2);
    enum { SIGNAL_STACK = 1 << 16 };
    stack_t stack = {.ss_sp = check(malloc(SIGNAL_STACK), "malloc"), .ss_size = SIGNAL_STACK};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    if (sigaltstack(&stack, NULL) != 0)
        return 2;
    static const int signals[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGTRAP, SIGALRM};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (sigaction(signals[i], &action, NULL) != 0)
            return 2;
    exit_slot[0] = (uint64_t)exit_routine;
    if (syscall(SYS_arch_prctl, ARCH_SET_GS, exit_slot) != 0)
        return 2;

    unsigned char *top = memory + MEMORY - 2 * PAGE;
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    if (sigsetjmp(left, 1) == 0) {
        const char *limit = getenv("GUEST_HOST_MILLISECONDS");
        long milliseconds = limit ? strtol(limit, NULL, 0) : WATCHDOG_SECONDS * 1000L;
        timer_t timer;
        struct itimerspec when = {.it_value = {milliseconds / 1000, milliseconds % 1000 * 1000000}};
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
        if (timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) != 0 || timer_settime(timer, 0, &when, NULL) != 0)
            return 2;
        enter(memory + entry, block, top, has_xsave());
    }
    /* the guest's flags, control words and registers came along */
    __asm__ volatile("pushq $0x202\n popfq\n fninit\n cld" ::: "cc", "memory");
    uint32_t mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" ::"m"(mxcsr));
    clock_gettime(CLOCK_MONOTONIC, &after);

    printf("operation %d\nsignal %d\nyields %ld\n", left_operation, left_signal, yields);
    printf("nanoseconds %lld\n", (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec);
    printf("block %#lx\nrsp %#lx\nstatus %lu\nresult ", (unsigned long)block, (unsigned long)top - 8,
           (unsigned long)block->status);
    if (block->result_size > FPSTATE_RESULT_MAXIMUM)
        return 2;
    for (uint64_t i = 0; i < block->result_size; i++)
        printf("%02x", block->result[i]);
    printf("\n");
    return 0;
}
