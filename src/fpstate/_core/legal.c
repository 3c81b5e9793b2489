/* SDM vol. 1, 13.8.1 and 13.12: what makes XRSTOR raise #GP. */
#include "legal.h"
#include "arrangement.h"
#include "shelf.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { RESERVED_STANDARD = 24, RESERVED_COMPACTED = 64, SLACK = 64 };

static uint64_t word_at(const char *image, size_t offset)
{
    uint64_t word;
    memcpy(&word, image + offset, sizeof word);
    return word;
}

static bool zeros(const char *image, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        if (image[i])
            return false;
    return true;
}

#define REFUSE(...) return snprintf(why, why_size, __VA_ARGS__), why
const char *image_illegal(const char *image, size_t size, char *why, size_t why_size)
{
    if (size < LEGACY_AND_HEADER)
        REFUSE("an image has at least 576 bytes, not %zu", size);
    uint64_t in_use = word_at(image, HEADER_AT), xcomp_bv = word_at(image, HEADER_AT + 8), xcr0 = processor()->xcr0;
    bool compact = xcomp_bv & COMPACTED;
    uint64_t room = compact ? xcomp_bv & ~COMPACTED : xcr0;
    if (compact && !processor()->xsavec)
        REFUSE("XCOMP_BV %#llx at byte 520: this processor has no compacted format", (unsigned long long)xcomp_bv);
    if (!compact && xcomp_bv)
        REFUSE("XCOMP_BV %#llx at byte 520: 0 in the standard format", (unsigned long long)xcomp_bv);
    if (room & ~xcr0)
        REFUSE("XCOMP_BV %#llx at byte 520: XCR0 is %#llx", (unsigned long long)xcomp_bv, (unsigned long long)xcr0);
    if (in_use & ~room)
        REFUSE("XSTATE_BV %#llx at byte 512: only %#llx may be there", (unsigned long long)in_use,
               (unsigned long long)room);
    if (!zeros(image, HEADER_AT + 16, HEADER_AT + (compact ? RESERVED_COMPACTED : RESERVED_STANDARD)))
        REFUSE("reserved bytes of the header (from byte 528) are not zero");
    uint32_t mxcsr = (uint32_t)word_at(image, MXCSR_AT);
    if ((!compact || in_use & SSE) && mxcsr & ~processor()->mxcsr_mask)
        REFUSE("MXCSR %#x at byte 24: only bits in %#x may be set", mxcsr, processor()->mxcsr_mask);
    struct arrangement arrangement = arrangement_of(room, compact);
    size_t extent = arrangement_extent(&arrangement, in_use);
    if (extent > size)
        REFUSE("XSTATE_BV %#llx needs %zu bytes, and there are %zu", (unsigned long long)in_use, extent, size);
    return NULL;
}

static struct shelf copies;

static void size_copies(void)
{
    copies.stride = shelf_stride(processor()->area_size + SLACK);
}

int image_through_registers(const char *image, size_t size, void *area)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t mask = processor()->managed_mask;
    pthread_once(&once, size_copies);
    char *copy = shelf_take(&copies);
    if (!copy)
        return ENOMEM;
    memcpy(copy, image, size < processor()->area_size ? size : processor()->area_size);
    if (signals_acquire()) {
        shelf_give(&copies, copy);
        return ENOMEM;
    }
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    int refused = xstate_exchange(copy, area, mask, mask, processor()->xsavec);
    xstate_restore(initial_image(), mask);
    control_words_write(mxcsr, fcw);
    signals_release();
    shelf_give(&copies, copy);
    uint64_t *in_use = (uint64_t *)((char *)area + HEADER_AT);
    if (!refused && !processor()->xsavec && (uint32_t)word_at(area, MXCSR_AT) != MXCSR_INITIAL)
        *in_use |= SSE; /* XSAVE counts XMM alone in XSTATE_BV[1], and writes MXCSR all the same */
    return refused;
}
