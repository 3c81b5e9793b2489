/* A state that did not fit its buffer lies in the spill area. The in-use bits that sent it there are a hint: Intel
 * counts writes, and Zen is now and then wrong by a bit. So the values decide. Where all that the buffer lacks is
 * initial, the state goes into the buffer after all; else it stays, and Python finds a larger buffer. */
#include "core.h"

#include <string.h>

enum { X87_AT = 32, X87_END = 160, XMM_AT = 160, XMM_END = 416 };

/* Not memcpy: the C library's uses vector registers, and this runs in the host's loop, which must not. */
static void copy(char *to, const char *from, size_t size)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static bool zero(const char *bytes, size_t size)
{
    uint64_t any = 0, word;
    for (size_t i = 0; i < size; i += sizeof word) {
        memcpy(&word, bytes + i, sizeof word);
        any |= word;
    }
    return any == 0;
}

static uint32_t mxcsr_in(const char *image)
{
    uint32_t mxcsr;
    memcpy(&mxcsr, image + MXCSR_AT, sizeof mxcsr);
    return mxcsr;
}

/* FOP, FIP and FDP count as initial when the rest is: they mean something only while an exception is pending. */
static bool x87_initial(const char *image)
{
    static const unsigned char control[5] = {FCW_INITIAL & 0xFF, FCW_INITIAL >> 8, 0, 0, 0};
    return memcmp(image, control, sizeof control) == 0 && zero(image + X87_AT, X87_END - X87_AT);
}

static bool initial_by_value(const char *image, uint32_t component, bool compact)
{
    if (component == 0)
        return x87_initial(image);
    if (component == 1)
        return mxcsr_in(image) == MXCSR_INITIAL && zero(image + XMM_AT, XMM_END - XMM_AT);
    uint32_t offset = compact ? processor()->component[component].compact_offset
                              : processor()->component[component].offset;
    return zero(image + offset, processor()->component[component].size);
}

static uint64_t without_initial(const char *image, uint64_t in_use, uint64_t candidates, bool compact)
{
    for (uint32_t i = 0; i < 63; i++)
        if ((in_use & candidates) >> i & 1 && initial_by_value(image, i, compact))
            in_use &= ~(1ull << i);
    return in_use;
}

static void copy_standard(char *buffer, const char *image, uint64_t in_use)
{
    copy(buffer, image, LEGACY_AND_HEADER);
    for (uint32_t i = 2; i < 63; i++) {
        uint32_t offset = processor()->component[i].offset;
        if (in_use >> i & 1)
            copy(buffer + offset, image + offset, processor()->component[i].size);
    }
}

void spill_settle(struct vcpu *vcpu, struct carrier *carrier)
{
    bool compact = carrier->flags & CARRIER_COMPACT;
    char *image = carrier->spill;
    /* The image's own word, not XGETBV's before it: what XSAVEC took for initial it did not write. */
    memcpy(&vcpu->in_use, image + HEADER_AT, sizeof vcpu->in_use);
    if (!compact && mxcsr_in(image) != MXCSR_INITIAL)
        vcpu->in_use |= 2; /* XSAVE counts XMM alone in XSTATE_BV[1]; XGETBV(1) counts MXCSR too */
    vcpu->in_use = without_initial(image, vcpu->in_use, ~vcpu->save_mask, compact);
    memcpy(image + HEADER_AT, &vcpu->in_use, sizeof vcpu->in_use);
    if (vcpu->in_use & ~vcpu->save_mask)
        return;
    vcpu->spilled = 0;
    if (!vcpu->save_mask)
        return;
    if (!compact) {
        copy_standard(vcpu->fpstate, image, vcpu->in_use);
        return;
    }
    xstate_exchange(image, vcpu->fpstate, carrier->full_mask, vcpu->save_mask, 1);
    xstate_restore(initial_image(), carrier->full_mask);
    control_words_write(carrier->host_mxcsr, carrier->host_fcw);
}
