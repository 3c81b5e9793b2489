/* Contexts: one full register state each. The interface for C.
 *
 * A switch saves everything that the core manages (XCR0 without PKRU) and loads everything, so that nothing of one
 * context stays in the registers of the next. No function here touches a vector register otherwise. A context is
 * used by one thread at a time; different contexts by any threads. All return 0 or an errno value: ENOTSUP and
 * EINVAL from core_ready(), ENOMEM where there is no memory for a state, and nothing has changed then. */
#ifndef FPSTATE_CONTEXT_H
#define FPSTATE_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct context {
    void *area;      /* the state as an XSAVE image, 64-byte aligned; NULL where it is initial or parked */
    void *packed;    /* the state register by register; NULL where it is not parked */
    uint64_t in_use; /* XSTATE_BV of the state */
};

/* What a cooperative switch keeps: the control words, as the ABI has it at a function call. */
struct control {
    uint32_t mxcsr;
    uint16_t fcw;
};

int context_init(struct context *context); /* the initial state; it holds no memory */
void context_destroy(struct context *context); /* scrubbed */
int context_save(struct context *context);    /* the registers' state becomes the context's */
int context_restore(struct context *context); /* the context's state becomes the registers' */
int context_switch(struct context *from, struct context *to);
/* The same, and fetch into the cache what the next switch will load. */
int context_switch_next(struct context *from, struct context *to, const struct context *next);
/* Pack a state that will not run soon into as few bytes as its live registers need; the next switch unpacks it.
 * Areas of more than 16,000 bytes stay as they are. */
int context_park(struct context *context);
int context_unpark(struct context *context);
/* The state as an image of processor()->area_size bytes in the arrangement of whole(), absent components initial. */
void context_read(const struct context *context, void *image);
/* Such an image, as the processor itself wrote it, becomes the state. */
int context_write(struct context *context, const void *image);
void context_prefetch(const struct context *context);
/* Bytes of memory that it holds. */
size_t context_size(const struct context *context);

/* Switch from each to the next, ``switches`` times, beginning with the first as loaded: the caller loads it before
 * and saves the last one after. ``order`` is walked round and round; ``position`` says where it stands. */
int context_rotate(struct context *const *order, size_t count, size_t *position, uint64_t switches, bool prefetch);

/* control_exchange: MXCSR and FCW to *from, *to's become current */
void control_exchange(struct control *from, const struct control *to);

#endif
