/* Many images: counting them by class, moving their registers. No Python here. */
#include "bulk.h"

#include <emmintrin.h>
#include <stdlib.h>
#include <string.h>

enum { SSE_BIT = 2, AVX_BIT = 4 };
#define FORCED_SSE (1ull << 63) /* in a key: MXCSR is not initial, and only AVX states it */

static uint64_t key_of(const struct bulk *bulk, const char *image)
{
    uint64_t xstate_bv;
    uint32_t mxcsr;
    memcpy(&xstate_bv, image + HEADER_AT, sizeof xstate_bv);
    memcpy(&mxcsr, image + MXCSR_AT, sizeof mxcsr);
    bool forced = bulk->avx_carries_mxcsr && (xstate_bv & (SSE_BIT | AVX_BIT)) == AVX_BIT && mxcsr != MXCSR_INITIAL;
    return (xstate_bv & bulk->key_mask) | (forced ? FORCED_SSE : 0);
}

static size_t slot_of(uint64_t key)
{
    return (size_t)(key * 0x9E3779B97F4A7C15ull >> 51) % BULK_SLOTS;
}

struct class *plan_find(const struct plan *plan, uint64_t key)
{
    for (size_t slot = slot_of(key); plan->slots[slot]; slot = (slot + 1) % BULK_SLOTS)
        if (plan->classes[plan->slots[slot] - 1].key == key)
            return &plan->classes[plan->slots[slot] - 1];
    return NULL;
}

struct class *plan_add(struct plan *plan, uint64_t key)
{
    size_t slot = slot_of(key);
    while (plan->slots[slot])
        slot = (slot + 1) % BULK_SLOTS;
    plan->slots[slot] = (uint16_t)++plan->count;
    struct class *class = &plan->classes[plan->count - 1];
    class->key = key;
    return class;
}

struct plan *plan_new(size_t classes)
{
    struct plan *plan = calloc(1, sizeof *plan);
    if (plan && !(plan->classes = calloc(classes ? classes : 1, sizeof *plan->classes))) {
        free(plan);
        plan = NULL;
    }
    return plan;
}

void plan_free(struct plan *plan)
{
    for (size_t i = 0; plan && i < plan->count; i++) {
        if (plan->classes[i].record)
            explicit_bzero(plan->classes[i].record, plan->classes[i].size);
        free(plan->classes[i].record);
        free(plan->classes[i].units);
        free(plan->classes[i].pieces);
    }
    if (plan)
        free(plan->classes);
    free(plan);
}

ssize_t bulk_count(const struct bulk *bulk, struct plan *plan, uint64_t xcomp_bv, uint64_t allowed)
{
    struct class *class = NULL;
    for (size_t i = 0; i < bulk->count; i++) {
        const char *image = bulk->source + i * bulk->stride;
        uint64_t header[2];
        memcpy(header, image + HEADER_AT, sizeof header);
        if (header[1] != xcomp_bv || header[0] & ~allowed)
            return (ssize_t)i;
        uint64_t key = key_of(bulk, image);
        if (!class || class->key != key)
            class = plan_find(plan, key);
        if (!class && plan->count == BULK_CLASSES)
            return BULK_TOO_MANY;
        if (!class)
            class = plan_add(plan, key);
        class->limit++;
    }
    return BULK_ALL_DONE;
}

/* Pieces are what is left of moves at the edges of units, and so small; a call of memcpy takes longer. */
static inline void copy_piece(char *to, const char *from, size_t size)
{
    if (size >= 8) {
        uint64_t low, high;
        memcpy(&low, from, 8);
        memcpy(&high, from + size - 8, 8);
        memcpy(to, &low, 8);
        memcpy(to + size - 8, &high, 8);
    } else {
        for (size_t at = 0; at < size; at++)
            to[at] = from[at];
    }
}

static inline const __m128i *unit_at(const char *image, ptrdiff_t to_record, uint32_t unit)
{
    return (const __m128i *)(image + unit / BULK_FLAGS + (to_record & -(ptrdiff_t)(unit & BULK_OF_RECORD)));
}

static inline void put(__m128i *to, const __m128i *from, bool stream)
{
    if (stream)
        _mm_stream_si128(to, _mm_loadu_si128(from));
    else
        _mm_storeu_si128(to, _mm_loadu_si128(from));
}

static inline void put_line(__m128i *to, const uint32_t *units, const char *image, ptrdiff_t to_record, bool stream)
{
    const __m128i *from = unit_at(image, to_record, units[0]);
    if (units[0] & BULK_WHOLE_LINE) {
        for (int i = 0; i < 4; i++)
            put(to + i, from + i, stream);
    } else {
        put(to, from, stream);
        for (int i = 1; i < 4; i++)
            put(to + i, unit_at(image, to_record, units[i]), stream);
    }
}

/* past the caches: whole lines, and to is aligned */
static void stream_record(const struct class *class, const char *image, char *to)
{
    ptrdiff_t to_record = class->record - image;
    __m128i *out = (__m128i *)to;
    for (size_t at = 0; at < class->unit_count; at += 4)
        put_line(out + at, class->units + at, image, to_record, true);
}

static void store_record(const struct class *class, const char *image, char *to)
{
    ptrdiff_t to_record = class->record - image;
    __m128i *out = (__m128i *)to;
    size_t at = 0;
    for (; at + 4 <= class->unit_count; at += 4)
        put_line(out + at, class->units + at, image, to_record, false);
    for (; at < class->unit_count; at++)
        put(out + at, unit_at(image, to_record, class->units[at]), false);
    memcpy(to + at * BULK_UNIT, class->record + at * BULK_UNIT, class->size - at * BULK_UNIT);
}

static void write_record(const struct class *class, const char *image, char *to)
{
    for (size_t i = 0; i < class->piece_count; i++) {
        const struct piece *piece = &class->pieces[i];
        copy_piece(class->record + piece->to, image + piece->from, piece->size);
    }
    if (class->stream)
        stream_record(class, image, to);
    else
        store_record(class, image, to);
}

ssize_t bulk_move(const struct bulk *bulk, struct plan *plan, char *destination, bool in_order, uint32_t *indices)
{
    struct class *class = NULL;
    ssize_t failed = BULK_ALL_DONE;
    for (size_t i = 0; i < bulk->count; i++) {
        const char *image = bulk->source + i * bulk->stride;
        if (i + 1 < bulk->count)
            __builtin_prefetch(image + bulk->stride + HEADER_AT);
        uint64_t key = key_of(bulk, image);
        if (!class || class->key != key)
            class = plan_find(plan, key);
        size_t slot = class ? in_order ? i : class->used : 0;
        if (!class || slot >= class->limit) {
            failed = (ssize_t)i;
            break;
        }
        write_record(class, image, destination + class->start + slot * class->step);
        if (indices)
            indices[class->first + class->used] = (uint32_t)i;
        class->used++;
    }
    _mm_sfence();
    return failed;
}

static void append_piece(struct class *class, uint32_t from, uint32_t to, uint32_t size)
{
    if (size)
        class->pieces[class->piece_count++] = (struct piece){from, to, size};
}

void class_append(struct class *class, uint32_t from, uint32_t to, uint32_t size)
{
    uint32_t end = to + size, first = (to + BULK_UNIT - 1) / BULK_UNIT, last = end / BULK_UNIT;
    if (last > class->unit_count)
        last = (uint32_t)class->unit_count;
    if (first >= last) {
        for (; size > BULK_UNIT; from += BULK_UNIT, to += BULK_UNIT, size -= BULK_UNIT) /* a short move over an edge */
            append_piece(class, from, to, BULK_UNIT);
        append_piece(class, from, to, size);
        return;
    }
    append_piece(class, from, to, first * BULK_UNIT - to);
    for (uint32_t unit = first; unit < last; unit++)
        class->units[unit] = BULK_FLAGS * (from + unit * BULK_UNIT - to);
    append_piece(class, from + last * BULK_UNIT - to, last * BULK_UNIT, end - last * BULK_UNIT);
}

/* Marks lines that are four units in a row. */
void class_finish(struct class *class)
{
    for (size_t at = 0; at + 4 <= class->unit_count; at += 4) {
        uint32_t *units = class->units + at, step = BULK_UNIT * BULK_FLAGS;
        if (units[1] == units[0] + step && units[2] == units[1] + step && units[3] == units[2] + step)
            units[0] |= BULK_WHOLE_LINE;
    }
}
