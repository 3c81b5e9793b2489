/* This thread as one that runs guests: its alternate stack, its timer, its spill area. */
#include "core.h"
#include "dumps.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { SLOTS = 256, PAGE = 4096, HANDLER_ROOM = 64 * 1024 };

/* The signal handler finds its carrier here by the stack it runs on: it cannot trust fs or gs. A block is never
 * freed, and a new one hangs behind the last before it is used, so that the handler can walk them at any moment. */
struct slots {
    _Atomic(struct carrier *) carrier[SLOTS];
    _Atomic(struct slots *) next;
};
static struct slots first_slots;
static _Thread_local struct carrier *mine;
static pthread_key_t at_thread_exit;

struct carrier *carrier_owning(const void *stack_address)
{
    const char *address = stack_address;
    for (struct slots *slots = &first_slots; slots; slots = atomic_load(&slots->next))
        for (int i = 0; i < SLOTS; i++) {
            struct carrier *carrier = atomic_load_explicit(&slots->carrier[i], memory_order_acquire);
            if (carrier && address >= carrier->stack && address < carrier->stack + carrier->stack_size)
                return carrier;
        }
    return NULL;
}

/* Put `new` where `old` is, an empty place where that is NULL; whether there was one. */
static bool replace(struct carrier *old, struct carrier *new)
{
    for (struct slots *slots = &first_slots; slots; slots = atomic_load(&slots->next))
        for (int i = 0; i < SLOTS; i++) {
            struct carrier *expected = old;
            if (atomic_compare_exchange_strong(&slots->carrier[i], &expected, new))
                return true;
        }
    return false;
}

static void forget(struct carrier *carrier)
{
    replace(carrier, NULL);
    if (carrier->stack)
        munmap(carrier->stack - PAGE, carrier->stack_size + PAGE);
    if (carrier->spill)
        munmap(carrier->spill, carrier->spill_size);
    free(carrier);
}

static void end_of_thread(void *raw)
{
    struct carrier *carrier = raw;
    timer_delete(carrier->timer);
    forget(carrier);
}

/* Timers do not survive fork: the child makes itself a carrier of its own when it first runs a guest. */
static void in_child(void)
{
    mine = NULL;
    pthread_setspecific(at_thread_exit, NULL); /* else it would delete a timer that is the child's */
    for (struct slots *slots = &first_slots; slots; slots = atomic_load(&slots->next))
        for (int i = 0; i < SLOTS; i++)
            atomic_store(&slots->carrier[i], NULL);
    signals_in_child();
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_key_create(&at_thread_exit, end_of_thread);
    pthread_atfork(NULL, NULL, in_child);
}

static int add_slots(void)
{
    struct slots *slots = calloc(1, sizeof *slots), *last = &first_slots, *none = NULL;
    if (!slots)
        return -1;
    while (!atomic_compare_exchange_strong(&last->next, &none, slots)) {
        last = none;
        none = NULL;
    }
    return 0;
}

static int enlist(struct carrier *carrier)
{
    while (!replace(NULL, carrier))
        if (add_slots())
            return -1;
    return 0;
}

static int map_areas(struct carrier *carrier)
{
    size_t frame = getauxval(AT_MINSIGSTKSZ);
    carrier->stack_size = (frame + HANDLER_ROOM + PAGE - 1) & ~(size_t)(PAGE - 1);
    char *stack = mmap(NULL, carrier->stack_size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        return -1;
    carrier->stack = stack + PAGE;
    if (!keep_from_dumps(stack, carrier->stack_size + PAGE) || mprotect(stack, PAGE, PROT_NONE))
        return -1;
    carrier->spill_size = (processor()->area_size + PAGE - 1) & ~(size_t)(PAGE - 1);
    carrier->spill = mmap(NULL, carrier->spill_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (carrier->spill == MAP_FAILED) {
        carrier->spill = NULL;
        return -1;
    }
    return keep_from_dumps(carrier->spill, carrier->spill_size) ? 0 : -1;
}

static int make_timer(struct carrier *carrier)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = tick_signal()};
    event.sigev_value.sival_ptr = carrier;
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    return timer_create(CLOCK_MONOTONIC, &event, &carrier->timer);
}

struct carrier *carrier_of_thread(void)
{
    if (mine)
        return mine;
    struct carrier *carrier = calloc(1, sizeof *carrier);
    if (!carrier)
        return NULL;
    if (map_areas(carrier) || make_timer(carrier)) {
        int error = errno;
        forget(carrier);
        errno = error;
        return NULL;
    }
    if (enlist(carrier) || pthread_setspecific(at_thread_exit, carrier)) {
        int error = errno;
        end_of_thread(carrier);
        errno = error;
        return NULL;
    }
    return mine = carrier;
}

static struct itimerspec every(uint64_t nanoseconds)
{
    struct timespec time = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    return (struct itimerspec){.it_interval = time, .it_value = time};
}

static void read_selectors(struct carrier *carrier)
{
    __asm__("mov %%ss, %0" : "=r"(carrier->host_ss));
    __asm__("mov %%ds, %0" : "=r"(carrier->host_ds));
    __asm__("mov %%es, %0" : "=r"(carrier->host_es));
    __asm__("mov %%fs, %0" : "=r"(carrier->host_fs_selector));
    __asm__("mov %%gs, %0" : "=r"(carrier->host_gs_selector));
}

/* While guests run, no signal but ours is let in: a foreign handler must not run over a guest's state. */
int carrier_start(struct carrier *carrier, uint64_t quantum_ns, stack_t *old_stack, sigset_t *old_mask)
{
    stack_t stack = {.ss_sp = carrier->stack, .ss_size = carrier->stack_size, .ss_flags = (int)SS_AUTODISARM};
    struct itimerspec interval = every(quantum_ns);
    sigset_t mask;
    sigfillset(&mask);
    sigdelset(&mask, tick_signal());
    sigdelset(&mask, SIGSEGV);
    sigdelset(&mask, SIGILL);
    sigdelset(&mask, SIGFPE);
    sigdelset(&mask, SIGTRAP);
    sigdelset(&mask, SIGBUS);
    carrier->host_fs = fsbase_read();
    carrier->host_gs = gsbase_read();
    read_selectors(carrier);
    carrier->host_mxcsr = mxcsr_read();
    carrier->host_fcw = fcw_read();
    carrier->full_mask = processor()->managed_mask;
    if (sigaltstack(&stack, old_stack))
        return -1;
    if (processor()->pkru) {
        carrier->host_pkru = pkru_read();
        rseq_leave(carrier);
    }
    if (pthread_sigmask(SIG_SETMASK, &mask, old_mask)) {
        rseq_come_back(carrier);
        sigaltstack(old_stack, NULL);
        return -1;
    }
    if (quantum_ns && timer_settime(carrier->timer, 0, &interval, NULL)) {
        carrier_stop(carrier, old_stack, old_mask);
        return -1;
    }
    return 0;
}

/* Leaves nothing of a guest behind in this thread: registers initial, control words and bases the host's. */
void carrier_stop(struct carrier *carrier, const stack_t *old_stack, const sigset_t *old_mask)
{
    struct itimerspec never = every(0);
    timer_settime(carrier->timer, 0, &never, NULL);
    xstate_restore(initial_image(), carrier->full_mask);
    control_words_write(carrier->host_mxcsr, carrier->host_fcw);
    gsbase_write(carrier->host_gs);
    rseq_come_back(carrier);
    sigaltstack(old_stack, NULL);
    pthread_sigmask(SIG_SETMASK, old_mask, NULL);
}
