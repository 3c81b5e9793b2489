/* SDM vol. 1, 13.8.1 and 13.12: what makes XRSTOR raise #GP; 13.14 and the kernel's XFD: what makes it raise #NM. */
#include "legal.h"
#include "arrangement.h"

#include <stdio.h>
#include <string.h>

enum { RESERVED_AT = HEADER_AT + 16, RESERVED_STANDARD = 24, RESERVED_COMPACTED = 64 };

static uint64_t word_at(const char *image, size_t offset)
{
    uint64_t word;
    memcpy(&word, image + offset, sizeof word);
    return word;
}

/* The first byte that is not zero, or ``to``. */
static size_t zeros_end(const char *image, size_t from, size_t to)
{
    while (from < to && !image[from])
        from++;
    return from;
}

/* Fill ``what`` in and say that it is so. */
#define REFUSE(at, is, may, ...)                                                                                       \
    do {                                                                                                               \
        *what = (struct illegal){.offset = (int64_t)(at), .found = (is), .expected = (may), .component = -1};          \
        snprintf(what->why, sizeof what->why, __VA_ARGS__);                                                            \
        return true;                                                                                                   \
    } while (0)

static bool header_illegal(const char *image, struct illegal *what)
{
    uint64_t in_use = word_at(image, HEADER_AT), xcomp_bv = word_at(image, HEADER_AT + 8), xcr0 = processor()->xcr0;
    bool compact = xcomp_bv & COMPACTED;
    uint64_t room = compact ? xcomp_bv & ~COMPACTED : xcr0;
    unsigned long long shown = xcomp_bv;
    if (compact && !processor()->xsavec)
        REFUSE(HEADER_AT + 8, xcomp_bv, 0, "XCOMP_BV %#llx at byte 520: this processor has no compacted format", shown);
    if (!compact && xcomp_bv)
        REFUSE(HEADER_AT + 8, xcomp_bv, 0, "XCOMP_BV %#llx at byte 520: 0 in the standard format", shown);
    if (room & ~xcr0)
        REFUSE(HEADER_AT + 8, xcomp_bv, COMPACTED | xcr0, "XCOMP_BV %#llx at byte 520: XCR0 is %#llx", shown,
               (unsigned long long)xcr0);
    if (in_use & ~room)
        REFUSE(HEADER_AT, in_use, room, "XSTATE_BV %#llx at byte 512: only %#llx may be there",
               (unsigned long long)in_use, (unsigned long long)room);
    size_t end = HEADER_AT + (compact ? RESERVED_COMPACTED : RESERVED_STANDARD);
    size_t at = zeros_end(image, RESERVED_AT, end);
    if (at < end)
        REFUSE(at, (unsigned char)image[at], 0, "reserved bytes of the header (from byte 528) are not zero: %#x at byte %zu",
               (unsigned char)image[at], at);
    return false;
}

/* Linux lets IA32_XFD hold back what a process did not ask for. To know costs a system call: only where it matters. */
static bool not_permitted(uint64_t in_use, struct illegal *what)
{
    uint64_t dynamic = in_use & processor()->managed_mask & processor()->dynamic_mask, permitted;
    if (!dynamic || !kernel_permission(&permitted) || !(dynamic & ~permitted))
        return false;
    int component = __builtin_ctzll(dynamic & ~permitted);
    *what = (struct illegal){
        .offset = HEADER_AT, .found = in_use, .expected = in_use & permitted, .component = component};
    snprintf(what->why, sizeof what->why, "XSTATE_BV %#llx at byte 512: no permission for component %d",
             (unsigned long long)in_use, component);
    return true;
}

bool image_illegal(const char *image, size_t size, struct illegal *what)
{
    if (size < LEGACY_AND_HEADER)
        REFUSE(size, size, LEGACY_AND_HEADER, "an image has at least 576 bytes, not %zu", size);
    if (header_illegal(image, what))
        return true;
    uint64_t in_use = word_at(image, HEADER_AT), xcomp_bv = word_at(image, HEADER_AT + 8);
    bool compact = xcomp_bv & COMPACTED;
    struct arrangement arrangement = arrangement_of(compact ? xcomp_bv & ~COMPACTED : processor()->xcr0, compact);
    size_t extent = arrangement_extent(&arrangement, in_use);
    if (extent > size)
        REFUSE(size, size, extent, "XSTATE_BV %#llx needs %zu bytes, and there are %zu", (unsigned long long)in_use, extent,
               size);
    if (not_permitted(in_use, what))
        return true;
    uint32_t mxcsr = (uint32_t)word_at(image, MXCSR_AT), mask = processor()->mxcsr_mask;
    if ((!compact || in_use & SSE) && mxcsr & ~mask)
        REFUSE(MXCSR_AT, mxcsr, mxcsr & mask, "MXCSR %#x at byte 24: only bits in %#x may be set", mxcsr, mask);
    return false;
}
