/* The native core's own words: a vCPU, the host thread that carries it, and who may call what.
 *
 * The core moves bits and knows no policy: masks, sizes and permission come from Python. */
#ifndef FPSTATE_CORE_H
#define FPSTATE_CORE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "offsets.h"

enum { FPSTATE_PORT = 0xF5, OPERATION_FINISHED = 0, OPERATION_YIELD = 1 };
enum { LEGACY_AND_HEADER = 576, LEGACY_MASK = 3, HEADER_AT = 512, MXCSR_AT = 24, PKRU_BIT = 9 };
enum { MXCSR_INITIAL = 0x1F80, FCW_INITIAL = 0x37F };

struct fault {
    int32_t signal;
    int32_t code;     /* si_code */
    uint64_t trap;    /* the exception vector */
    uint64_t error;   /* its error code */
    uint64_t address; /* the memory address of a page fault (CR2), else the instruction's */
};

/* How an XRSTOR was refused, as Linux told it: which exception it was and why is for Python to say. */
struct refusal {
    int32_t signal; /* 0: it was not */
    int32_t code;   /* si_code */
    uint64_t address; /* si_addr: of a page fault, the byte that was not there */
};

struct carrier;
struct queue;

/* Where an area has its components, for the cores' assembly. */
struct arrangement {
    uint64_t xcomp_bv; /* 0: standard format */
    uint64_t room;     /* components that the area has room for */
    uint64_t managed;  /* components that a load covers, so that absent ones are initialised */
    uint64_t moves;    /* components that the fast core has moves for; the rest go through XSAVE-family instructions */
    uint32_t avx, opmask, zmm_hi256, hi16_zmm; /* bytes from the start of the area */
    uint32_t mxcsr_mask, mxcsr_reserved;
};

struct vcpu {
    void *exit_routine;
    uint64_t gpr[16];
    uint64_t rip;
    uint64_t rflags;
    uint64_t host_rsp;
    struct carrier *carrier;
    void *fpstate;         /* where the state lies: a buffer of the pool, or the shared initial image */
    uint64_t save_mask;    /* components that the buffer has room for; 0: there is no buffer */
    uint64_t restore_mask; /* RFBM of the restore: every enabled component, so that absent ones are initialised */
    uint64_t in_use;       /* XINUSE at the last save */
    uint32_t spilled;      /* the state lies in the carrier's spill area and waits for a larger buffer */
    uint32_t exit_kind;
    uint64_t tsc_enter;
    uint64_t tsc_leave;
    uint32_t pkru;
    uint32_t by_frame; /* PKRU closes the host's own key: sigreturn enters the guest, in one piece */
    struct arrangement arrangement; /* of fpstate */

    struct fault fault;
    uint64_t code_start; /* guest memory: port writes are recognised here only */
    uint64_t code_end;
    uint64_t slices;
    uint64_t preemptions;
    uint64_t cycles;       /* from entry to exit, in TSC cycles: the thread may have been off its processor meanwhile */
    uint64_t ran;          /* the same without that; counted only once the limit is near enough to matter */
    uint64_t cycle_limit;  /* of ran; 0: none */
    uint32_t slack_saves;  /* saves in a row that used less than the buffer has room for */
    uint32_t shrink_after; /* come back to the host after so many; 0: never */
    struct queue *queue;
    struct vcpu *next, *previous;
    void *object; /* the Python object that owns this struct */
};

/* A host thread that runs guests. */
struct carrier {
    struct vcpu *vcpu; /* whose guest is on; NULL while host code runs */
    void *spill;
    uint64_t full_mask;
    uint64_t host_fs;
    uint32_t flags;
    uint32_t host_mxcsr;
    void *store;   /* the fast core's, else NULL */
    void *load;    /* likewise */
    uint64_t live; /* what may be in use in the registers when the next guest is entered */
    uint32_t host_pkru;
    uint32_t host_ss, host_ds, host_es, host_fs_selector, host_gs_selector;

    uint32_t rescues;    /* faults in the trampoline since the guest was entered */
    uint32_t stuck;      /* ticks in a row that found the trampoline, since then */
    uint32_t rseq_size;  /* bytes of the thread's restartable sequence area, which is off while guests run; 0: none */
    uint16_t host_fcw;
    uint64_t host_gs;
    char *stack; /* the alternate signal stack */
    size_t stack_size;
    size_t spill_size;
    timer_t timer;
    uint64_t ticks_in_host; /* ticks that met host code, and were let pass */
};

#define ASSERT_AT(type, field, offset) \
    _Static_assert(offsetof(struct type, field) == (offset), #type "." #field " moved: change offsets.h")
ASSERT_AT(vcpu, exit_routine, VCPU_EXIT_ROUTINE);
ASSERT_AT(vcpu, gpr, VCPU_GPR);
ASSERT_AT(vcpu, rip, VCPU_RIP);
ASSERT_AT(vcpu, rflags, VCPU_RFLAGS);
ASSERT_AT(vcpu, host_rsp, VCPU_HOST_RSP);
ASSERT_AT(vcpu, carrier, VCPU_CARRIER);
ASSERT_AT(vcpu, fpstate, VCPU_FPSTATE);
ASSERT_AT(vcpu, save_mask, VCPU_SAVE_MASK);
ASSERT_AT(vcpu, restore_mask, VCPU_RESTORE_MASK);
ASSERT_AT(vcpu, in_use, VCPU_IN_USE);
ASSERT_AT(vcpu, spilled, VCPU_SPILLED);
ASSERT_AT(vcpu, exit_kind, VCPU_EXIT_KIND);
ASSERT_AT(vcpu, tsc_enter, VCPU_TSC_ENTER);
ASSERT_AT(vcpu, tsc_leave, VCPU_TSC_LEAVE);
ASSERT_AT(vcpu, pkru, VCPU_PKRU);
ASSERT_AT(vcpu, by_frame, VCPU_BY_FRAME);
ASSERT_AT(vcpu, arrangement, VCPU_ARRANGEMENT);
ASSERT_AT(carrier, vcpu, CARRIER_VCPU);
ASSERT_AT(carrier, spill, CARRIER_SPILL);
ASSERT_AT(carrier, full_mask, CARRIER_FULL_MASK);
ASSERT_AT(carrier, host_fs, CARRIER_HOST_FS);
ASSERT_AT(carrier, flags, CARRIER_FLAGS);
ASSERT_AT(carrier, store, CARRIER_STORE);
ASSERT_AT(carrier, load, CARRIER_LOAD);
ASSERT_AT(carrier, live, CARRIER_LIVE);
ASSERT_AT(carrier, host_pkru, CARRIER_HOST_PKRU);
ASSERT_AT(carrier, host_ss, CARRIER_HOST_SS);
ASSERT_AT(carrier, host_ds, CARRIER_HOST_DS);
ASSERT_AT(carrier, host_es, CARRIER_HOST_ES);
ASSERT_AT(carrier, host_fs_selector, CARRIER_HOST_FS_SELECTOR);
ASSERT_AT(carrier, host_gs_selector, CARRIER_HOST_GS_SELECTOR);
ASSERT_AT(arrangement, xcomp_bv, ARRANGEMENT_XCOMP_BV);
ASSERT_AT(arrangement, room, ARRANGEMENT_ROOM);
ASSERT_AT(arrangement, managed, ARRANGEMENT_MANAGED);
ASSERT_AT(arrangement, moves, ARRANGEMENT_MOVES);
ASSERT_AT(arrangement, avx, ARRANGEMENT_AVX);
ASSERT_AT(arrangement, opmask, ARRANGEMENT_OPMASK);
ASSERT_AT(arrangement, zmm_hi256, ARRANGEMENT_ZMM_HI256);
ASSERT_AT(arrangement, hi16_zmm, ARRANGEMENT_HI16_ZMM);
ASSERT_AT(arrangement, mxcsr_mask, ARRANGEMENT_MXCSR_MASK);
ASSERT_AT(arrangement, mxcsr_reserved, ARRANGEMENT_MXCSR_RESERVED);

/* trampoline.S: into a guest and out of it. Every label below lies in one stretch of text. */
uint32_t vcpu_enter(struct vcpu *vcpu, struct carrier *carrier);
extern const char trampoline_start[], trampoline_end[];
extern const char enter_moved[], enter_xrstor[], enter_by_frame[], enter_end[], vcpu_exit[], vcpu_save[],
    vcpu_abandoned[];

/* xstate.S: restore (XRSTOR64), and restore and save at once, as functions */
struct refusal xstate_restore(const void *area, uint64_t mask);
struct refusal xstate_exchange(const void *from, void *to, uint64_t load, uint64_t save, int compact);
struct refusal guarded_load(const void *area, const struct arrangement *arrangement,
                            void (*load)(const void *, const struct arrangement *));
struct refusal guarded_copy(void *to, const void *from, size_t size);
extern const char guarded_xrstor[], guarded_exchange[], guarded_failed[], guarded_loaded[], guarded_movs[];
uint64_t fsbase_read(void);
uint64_t gsbase_read(void);
void fsbase_write(uint64_t base);
void gsbase_write(uint64_t base);
uint32_t pkru_read(void);
void pkru_write(uint32_t pkru);
uint32_t mxcsr_read(void);
uint16_t fcw_read(void);
void control_words_write(uint32_t mxcsr, uint16_t fcw);

/* processor.c: what this processor and kernel have */
struct processor {
    uint64_t xcr0;         /* enabled; 0 where there is no OSXSAVE */
    uint64_t managed_mask; /* what the trampolines save and restore: XCR0 without PKRU */
    uint64_t dynamic_mask; /* of these, what IA32_XFD can hold back: an image may state it only with permission */
    uint32_t area_size;    /* bytes of the largest image in either format */
    uint32_t mxcsr_mask;
    size_t second_level_cache; /* bytes */
    struct {
        uint32_t size, offset, compact_offset; /* the latter in the compacted image of everything managed */
        bool aligned;                          /* to 64 bytes in the compacted format */
    } component[63];
    bool xsavec, xgetbv1, pkru, fsgsbase;
    bool avx, avx512;       /* instructions that the fast core's moves need; XCR0 decides too */
    bool pointers_restored; /* FXSAVE and XSAVE keep FOP, FIP, FDP apart even where no exception is pending */
};
const struct processor *processor(void);
void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
uint64_t xgetbv(uint32_t index);
uint64_t tsc_hz(void); /* measured once, over some milliseconds */
void *initial_image(void); /* one read-only image for all that have nothing in use */

/* permission.c: the components that the kernel permits this process (ARCH_GET_XCOMP_PERM); false: it does not say */
bool kernel_permission(uint64_t *permitted);

/* spill.c: what to do with a state that did not fit its buffer */
void spill_settle(struct vcpu *vcpu, struct carrier *carrier);

/* signals.c: ticks and faults */
int signals_acquire(void); /* our handlers are in place until the matching release */
void signals_release(void);
void guard_acquire(void); /* the same for what a restore or a copy can raise, for a moment: fewer signals */
void guard_release(void);
int tick_signal(void);
void signals_in_child(void); /* after fork */

/* carrier.c: this thread as one that runs guests */
struct carrier *carrier_of_thread(void); /* NULL with errno where there is no memory or timer */
struct carrier *carrier_owning(const void *stack_address);
int carrier_start(struct carrier *carrier, uint64_t quantum_ns, stack_t *old_stack, sigset_t *old_mask);
void carrier_stop(struct carrier *carrier, const stack_t *old_stack, const sigset_t *old_mask);

/* rseq.c: restartable sequences, which are off while guests run where there are protection keys */
void rseq_leave(struct carrier *carrier);
void rseq_come_back(const struct carrier *carrier);

/* queue.c: round robin over vCPUs until one of them needs a decision */
struct run_limits {
    uint64_t quantum_ns;
    uint64_t budget_ns;  /* come back after so long */
    uint64_t max_slices; /* or after so many slices; 0: no such limit */
};
struct queue {
    struct vcpu *head; /* the next to run */
    size_t length;
    bool busy;
    uint64_t switches, preemptions, yields, saves;
    uint64_t ticks_in_host;
    uint64_t clock_tsc, clock_cycles; /* when the thread's clock was last read, and what it said */
    uint32_t *samples; /* TSC cycles from the end of one guest's slice to the start of the next one's */
    size_t sample_capacity, sample_count;
    bool compact; /* false: act as on a processor without XSAVEC */
    bool timing;
};
void queue_add(struct queue *queue, struct vcpu *vcpu);
void queue_remove(struct queue *queue, struct vcpu *vcpu);
/* returns 0, or -1 with errno; *decision is the vCPU that left the queue for a decision, or NULL */
int queue_run(struct queue *queue, const struct run_limits *limits, struct vcpu **decision);

#endif
