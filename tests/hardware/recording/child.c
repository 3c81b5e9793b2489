/* The processor's side of a recording: it performs steps that Python wrote into shared memory, and notes what each
 * did.
 *
 * child FD SIZE    FD: memory of SIZE bytes, mapped at BASE, with an inaccessible GUARD behind it
 *   At first it copies its table of stubs to the page behind struct order and writes a byte to standard output. Then
 *   for each byte on standard input: it performs the steps of struct order, and answers with a byte.
 *
 * A step is a stub of operations.S and its three operands. An exception ends the step and is part of its record; the
 * kernel then saved the registers and loaded them again. No C library is linked and nothing here is compiled for x87 or
 * vectors, so that no other code touches the registers: a library registers rseq, to which the kernel writes
 * with whatever PKRU is loaded. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "child.h"

enum { GIVE_UP = 3, PAGE = 4096, GUARD = 1 << 20, SIGNAL_STACK = 1 << 17, RESTORER = 0x04000000, ALIGN = 64 };

struct order { uint64_t steps, count, records, has; };
struct step { uint64_t stub, first, second, third; };
struct record {
    uint64_t value, in_use, pkru, address, error;
    uint32_t signal;
    int32_t code;
    uint32_t vector, reserved;
};
struct action { void *handler; uint64_t flags; void (*restorer)(void); uint64_t mask; };

void perform(uint64_t stub, uint64_t first, uint64_t second, uint64_t third, uint64_t has);
void restore_signal(void);
extern char after[], first_stub[], last_stub[], frame64[], frame32[];
extern const char __start_stubs[], __stop_stubs[]; /* the linker's, of the section of operations.S */
extern uint64_t saved_stack;
extern volatile uint64_t seen[3];

static char signal_stack[SIGNAL_STACK] __attribute__((aligned(ALIGN)));
static volatile struct record *noted;
static uint64_t has;

static long call(long number, long first, long second, long third, long fourth, long fifth)
{
    register long r10 __asm__("r10") = fourth;
    register long r8 __asm__("r8") = fifth;
    register long r9 __asm__("r9") = 0;
    long result = number;
    __asm__ volatile("syscall"
                     : "+a"(result), "+r"(r10), "+r"(r8), "+r"(r9)
                     : "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return result;
}

static _Noreturn void leave(int code)
{
    for (;;)
        call(SYS_exit_group, code, 0, 0, 0, 0);
}

/* Whatever the kernel left of the registers, go on behind the step; a second exception of one step ends the child. */
static void on_exception(int signal, siginfo_t *info, void *raw)
{
    ucontext_t *context = raw;
    greg_t *registers = context->uc_mcontext.gregs;
    uint64_t at = (uint64_t)registers[REG_RIP];

    if (at < (uint64_t)first_stub || at >= (uint64_t)last_stub || noted->signal)
        leave(GIVE_UP);
    noted->signal = (uint32_t)signal;
    noted->code = info->si_code;
    noted->vector = (uint32_t)registers[REG_TRAPNO];
    noted->error = (uint64_t)registers[REG_ERR];
    noted->address = (uint64_t)info->si_addr;
    registers[REG_RIP] = (greg_t)after;
    registers[REG_RSP] = (greg_t)saved_stack;
    registers[REG_RBX] = (greg_t)has;
    registers[REG_CSGSFS] = (registers[REG_CSGSFS] & ~(greg_t)0xFFFF) | CODE_OF_64_BITS;
}

static void put(char *frame, unsigned at, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        frame[at + i] = (char)(value >> 8 * i);
}

/* What both frames always say: go on at `after`, in 64-bit mode. */
static void build_frames(void)
{
    const uint64_t interrupts = 0x202;
    put(frame64, CONTEXT_64, 7, 8); /* UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS */
    put(frame64, STACK_64, (uint64_t)signal_stack, 8);
    put(frame64, STACK_64 + 16, SIGNAL_STACK, 8);
    put(frame64, IP_64, (uint64_t)after, 8);
    put(frame64, FLAGS_64, interrupts, 8);
    put(frame64, CS_64, CODE_OF_64_BITS, 2);
    put(frame64, SS_64, DATA, 2);
    put(frame32, ES_32, DATA, 2);
    put(frame32, DS_32, DATA, 2);
    put(frame32, IP_32, (uint64_t)after, 4);
    put(frame32, CS_32, CODE_OF_64_BITS, 2);
    put(frame32, FLAGS_32, interrupts, 4);
    put(frame32, SS_32, DATA, 2);
}

static void run(const struct order *order)
{
    const struct step *step = (const struct step *)order->steps;
    volatile struct record *record = (volatile struct record *)order->records;

    has = order->has;
    for (uint64_t left = order->count; left; left--, step++, record++) {
        noted = record;
        record->signal = 0;
        perform(step->stub, step->first, step->second, step->third, has);
        record->value = seen[0];
        record->in_use = seen[1];
        record->pkru = seen[2];
    }
}

static long number(const char *text)
{
    long value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = 10 * value + (*text - '0');
    return value;
}

static void prepare(long file, long size)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    struct action action = {(void *)on_exception, SA_SIGINFO | SA_ONSTACK | SA_NODEFER | RESTORER, restore_signal, 0};
    stack_t stack = {.ss_sp = signal_stack, .ss_size = SIGNAL_STACK};
    long shared = MAP_SHARED | MAP_FIXED;

    if (call(SYS_mmap, BASE, size + GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1) != BASE)
        leave(GIVE_UP);
    if (call(SYS_mmap, BASE, size, PROT_READ | PROT_WRITE, shared, file) != BASE)
        leave(GIVE_UP);
    if (call(SYS_sigaltstack, (long)&stack, 0, 0, 0, 0))
        leave(GIVE_UP);
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        if (call(SYS_rt_sigaction, signals[i], (long)&action, 0, sizeof action.mask, 0))
            leave(GIVE_UP);
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(DATA)); /* which 32-bit code uses */
    build_frames();
}

_Noreturn void child_main(char **start) /* what the kernel left on the stack: argc, argv */
{
    char go = 0;
    char *table = (char *)BASE + PAGE;

    prepare(number(start[2]), number(start[3]));
    for (const char *from = __start_stubs; from < __stop_stubs; from++)
        *table++ = *from;
    do {
        if (go)
            run((const struct order *)BASE);
        go = 1;
        if (call(SYS_write, 1, (long)&go, 1, 0, 0) != 1)
            leave(GIVE_UP);
    } while (call(SYS_read, 0, (long)&go, 1, 0, 0) == 1);
    leave(0);
}
