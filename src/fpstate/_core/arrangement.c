/* Offsets come from CPUID's leaf 0DH alone: Intel's and AMD's processors differ in them. */
#include "arrangement.h"

#include <pthread.h>

static struct arrangement for_contexts, for_nothing;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Offsets in the compacted format follow the mask (SDM vol. 1, 13.4.3). */
static uint32_t compacted_offset(uint64_t room, uint32_t component)
{
    uint32_t cursor = LEGACY_AND_HEADER;
    for (uint32_t i = 2; i <= component; i++) {
        if (!(room >> i & 1))
            continue;
        if (processor()->component[i].aligned)
            cursor = (cursor + 63) & ~63u;
        if (i == component)
            return cursor;
        cursor += processor()->component[i].size;
    }
    return 0;
}

uint32_t arrangement_offset(const struct arrangement *arrangement, uint32_t component)
{
    switch (component) {
    case 2: return arrangement->avx;
    case OPMASK_NUMBER: return arrangement->opmask;
    case ZMM_HI256_NUMBER: return arrangement->zmm_hi256;
    case HI16_ZMM_NUMBER: return arrangement->hi16_zmm;
    default:
        return arrangement->xcomp_bv ? compacted_offset(arrangement->room, component)
                                     : processor()->component[component].offset;
    }
}

size_t arrangement_extent(const struct arrangement *arrangement, uint64_t components)
{
    size_t end = LEGACY_AND_HEADER;
    for (components &= ~(uint64_t)(LEGACY_MASK | COMPACTED); components; components &= components - 1) {
        uint32_t i = (uint32_t)__builtin_ctzll(components);
        size_t last = arrangement_offset(arrangement, i) + (size_t)processor()->component[i].size;
        if (last > end)
            end = last;
    }
    return end;
}

static uint32_t offset_of(uint64_t room, bool compact, uint32_t component)
{
    if (!(room >> component & 1))
        return 0;
    return compact ? compacted_offset(room, component) : processor()->component[component].offset;
}

/* What moves there are here. The AVX-512 components come and go together (XSETBV's rule). */
static uint64_t moves(void)
{
    uint64_t managed = processor()->managed_mask, found = X87 | SSE;
    if (processor()->avx)
        found |= AVX;
    if (processor()->avx512)
        found |= AVX512;
    return managed & found;
}

struct arrangement arrangement_of(uint64_t room, bool compact)
{
    return (struct arrangement){
        .xcomp_bv = compact ? COMPACTED | room : 0,
        .room = room,
        .managed = processor()->managed_mask,
        .moves = moves(),
        .avx = offset_of(room, compact, 2),
        .opmask = offset_of(room, compact, OPMASK_NUMBER),
        .zmm_hi256 = offset_of(room, compact, ZMM_HI256_NUMBER),
        .hi16_zmm = offset_of(room, compact, HI16_ZMM_NUMBER),
        .mxcsr_mask = processor()->mxcsr_mask,
        .mxcsr_reserved = ~processor()->mxcsr_mask,
    };
}

static void make(void)
{
    for_contexts = arrangement_of(processor()->managed_mask, processor()->xsavec);
    for_nothing = arrangement_of(0, false);
}

const struct arrangement *whole(void)
{
    pthread_once(&once, make);
    return &for_contexts;
}

const struct arrangement *initial_arrangement(void)
{
    pthread_once(&once, make);
    return &for_nothing;
}
