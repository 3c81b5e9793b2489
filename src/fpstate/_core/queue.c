/* Round robin over vCPUs: the loop that stays in C until one of them needs a decision. */
#include "cores.h"

#include <errno.h>
#include <string.h>

enum { SLICES_BETWEEN_CLOCKS = 64 };
/* Nobody comes back in so few cycles from a processor that ran something else in between. */
enum { SHORT_SLICE = 1 << 14 };
/* A limit counts time in which the thread ran, and to know that costs a system call. So it is counted only after this
 * part of the limit, or so many cycles from entry to exit: the limit may be passed by as much, and is never fallen short of. */
enum { UNCOUNTED_PART = 16, UNCOUNTED_CYCLES = 1 << 25 };
/* What a guest may keep in its flags: the status flags, DF, AC and ID; never TF, which would trap the trampoline. */
#define GUEST_FLAGS 0x240CD5ull

/* PKRU's bits for key 0, which the host's memory has: access disable and write disable. */
enum { KEY_0 = 3 };

void queue_add(struct queue *queue, struct vcpu *vcpu)
{
    if (!queue->head) {
        vcpu->next = vcpu->previous = vcpu;
        queue->head = vcpu;
    } else {
        vcpu->next = queue->head;
        vcpu->previous = queue->head->previous;
        vcpu->previous->next = vcpu;
        queue->head->previous = vcpu;
    }
    vcpu->queue = queue;
    queue->length++;
}

void queue_remove(struct queue *queue, struct vcpu *vcpu)
{
    if (vcpu->next == vcpu) {
        queue->head = NULL;
    } else {
        vcpu->next->previous = vcpu->previous;
        vcpu->previous->next = vcpu->next;
        if (queue->head == vcpu)
            queue->head = vcpu->next;
    }
    vcpu->next = vcpu->previous = NULL;
    vcpu->queue = NULL;
    queue->length--;
}

/* The components that a buffer for these holds: the legacy region is one piece. */
static uint64_t room_for(uint64_t in_use)
{
    return in_use ? in_use | LEGACY_MASK : 0;
}

static uint32_t run_slice(struct vcpu *vcpu, struct carrier *carrier)
{
    bool pkru = carrier->flags & CARRIER_PKRU;
    vcpu->spilled = 0;
    vcpu->exit_kind = EXIT_NONE;
    vcpu->exit_routine = (void *)vcpu_exit;
    vcpu->rflags = (vcpu->rflags & GUEST_FLAGS) | 0x202;
    vcpu->by_frame = pkru && vcpu->pkru & KEY_0;
    carrier->rescues = carrier->stuck = 0;
    uint32_t kind = vcpu_enter(vcpu, carrier);
    if (vcpu->spilled) {
        spill_settle(vcpu, carrier);
        carrier->live = ~0ull;
    }
    vcpu->slices++;
    return kind;
}

static bool yields(const struct vcpu *vcpu, uint32_t kind)
{
    bool asked = kind == EXIT_CALL || kind == EXIT_PORT;
    return asked && (uint32_t)vcpu->gpr[REG_N_RAX] == OPERATION_YIELD;
}

static bool shrinks(struct vcpu *vcpu)
{
    vcpu->slack_saves = room_for(vcpu->in_use) != vcpu->save_mask ? vcpu->slack_saves + 1 : 0;
    return vcpu->shrink_after && vcpu->slack_saves >= vcpu->shrink_after;
}

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* The processor time of this thread, in cycles of the time stamp counter. */
static uint64_t thread_cycles(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    uint64_t ns = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
    return (uint64_t)((unsigned __int128)ns * tsc_hz() / 1000000000u);
}

static void read_clock(struct queue *queue)
{
    queue->clock_tsc = __builtin_ia32_rdtsc();
    queue->clock_cycles = thread_cycles();
}

/* For how long the thread did not run since the clock was last read. */
static uint64_t lost_cycles(struct queue *queue)
{
    uint64_t tsc = queue->clock_tsc, cycles = queue->clock_cycles;
    read_clock(queue);
    uint64_t elapsed = queue->clock_tsc - tsc, ran = queue->clock_cycles - cycles;
    return elapsed > ran ? elapsed - ran : 0;
}

/* Add a slice to what the guest used. A thread that was off its processor was so in this slice, as far as can be known:
 * the others since the clock was read were too short for it. */
static void count_slice(struct queue *queue, struct vcpu *vcpu, uint32_t kind)
{
    uint64_t slice = vcpu->tsc_leave - vcpu->tsc_enter;
    vcpu->cycles += slice;
    uint64_t part = vcpu->cycle_limit / UNCOUNTED_PART;
    if (!vcpu->cycle_limit || vcpu->cycles <= (part < UNCOUNTED_CYCLES ? part : UNCOUNTED_CYCLES))
        return;
    if (kind == EXIT_PREEMPTED || slice >= SHORT_SLICE || vcpu->ran + slice > vcpu->cycle_limit) {
        uint64_t lost = lost_cycles(queue);
        slice = slice > lost ? slice - lost : 0;
    }
    vcpu->ran += slice;
}

static void sample(struct queue *queue, uint64_t cycles)
{
    if (queue->sample_capacity)
        queue->samples[queue->sample_count++ % queue->sample_capacity] =
            cycles > UINT32_MAX ? UINT32_MAX : (uint32_t)cycles;
}

/* true: this vCPU goes on in the next round; false: it needs a decision */
static bool goes_on(struct queue *queue, struct vcpu *vcpu, uint32_t kind)
{
    bool yielded = yields(vcpu, kind);
    if (kind == EXIT_PREEMPTED) {
        vcpu->preemptions++;
        queue->preemptions++;
    }
    queue->yields += yielded;
    queue->saves += kind != EXIT_REFUSED;
    if (queue->timing && kind != EXIT_REFUSED)
        count_slice(queue, vcpu, kind);
    if (!yielded && kind != EXIT_PREEMPTED)
        return false;
    if (vcpu->spilled)
        return false;
    if (vcpu->cycle_limit && vcpu->ran > vcpu->cycle_limit) {
        vcpu->exit_kind = EXIT_EXPIRED;
        return false;
    }
    return !shrinks(vcpu);
}

static void rounds(struct queue *queue, struct carrier *carrier, const struct run_limits *limits,
                   struct vcpu **decision)
{
    uint64_t start = now_ns(), slices = 0, left_at = 0;
    while (queue->head) {
        struct vcpu *vcpu = queue->head;
        uint32_t kind = run_slice(vcpu, carrier);
        slices++;
        queue->switches++;
        if (queue->timing && kind != EXIT_REFUSED) {
            if (left_at)
                sample(queue, vcpu->tsc_enter - left_at);
            left_at = vcpu->tsc_leave;
        }
        if (!goes_on(queue, vcpu, kind)) {
            *decision = vcpu;
            queue_remove(queue, vcpu);
            return;
        }
        queue->head = vcpu->next;
        if (limits->max_slices && slices >= limits->max_slices)
            return;
        if ((kind == EXIT_PREEMPTED || slices % SLICES_BETWEEN_CLOCKS == 0) && now_ns() - start >= limits->budget_ns)
            return;
    }
}

int queue_run(struct queue *queue, const struct run_limits *limits, struct vcpu **decision)
{
    stack_t old_stack;
    sigset_t old_mask;
    *decision = NULL;
    if (!initial_image()) {
        errno = ENOMEM;
        return -1;
    }
    tsc_hz(); /* measured now, if at all: not between guests */
    if (signals_acquire())
        return -1;
    struct carrier *carrier = carrier_of_thread();
    if (!carrier || carrier_start(carrier, limits->quantum_ns, &old_stack, &old_mask)) {
        int error = errno;
        signals_release();
        errno = error;
        return -1;
    }
    carrier->flags = (queue->compact ? CARRIER_COMPACT : 0) | (processor()->pkru ? CARRIER_PKRU : 0) |
                     (queue->timing ? CARRIER_TIMING : 0);
    carrier->store = queue->compact ? (void *)chosen_core->store : NULL;
    carrier->load = queue->compact ? (void *)chosen_core->load_checked : NULL;
    carrier->live = ~0ull;
    if (queue->timing)
        read_clock(queue);
    uint64_t missed = carrier->ticks_in_host;
    rounds(queue, carrier, limits, decision);
    queue->ticks_in_host += carrier->ticks_in_host - missed;
    carrier_stop(carrier, &old_stack, &old_mask);
    signals_release();
    if (!*decision || !(*decision)->spilled)
        memset(carrier->spill, 0, carrier->spill_size); /* standard saves pass through here: leave none behind */
    return 0;
}
