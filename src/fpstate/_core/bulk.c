/* Many images: counting them by class, moving their registers. No Python here. */
#include "bulk.h"

#include <emmintrin.h>
#include <stdlib.h>
#include <string.h>

enum { SSE_BIT = 2, AVX_BIT = 4, AHEAD = 8 };
#define FORCED_SSE (1ull << 63) /* in a key: MXCSR is not initial, and only AVX states it */

static inline bool legal(const struct bulk *bulk, const char *image)
{
    uint64_t header[2];
    memcpy(header, image + HEADER_AT, sizeof header);
    return header[1] == bulk->xcomp_bv && !(header[0] & ~bulk->allowed);
}

static inline uint64_t key_of(const struct bulk *bulk, const char *image)
{
    uint64_t xstate_bv;
    memcpy(&xstate_bv, image + HEADER_AT, sizeof xstate_bv);
    uint64_t key = xstate_bv & bulk->key_mask;
    if (bulk->avx_carries_mxcsr && (xstate_bv & (SSE_BIT | AVX_BIT)) == AVX_BIT) { /* else MXCSR's line is not needed */
        uint32_t mxcsr;
        memcpy(&mxcsr, image + MXCSR_AT, sizeof mxcsr);
        key |= mxcsr != MXCSR_INITIAL ? FORCED_SSE : 0;
    }
    return key;
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
        free(plan->classes[i].bands);
        free(plan->classes[i].lines);
        free(plan->classes[i].pieces);
    }
    if (plan)
        free(plan->classes);
    free(plan);
}

ssize_t bulk_count(const struct bulk *bulk, struct plan *plan)
{
    struct class *class = NULL;
    for (size_t i = 0; i < bulk->count; i++) {
        const char *image = bulk->source + i * bulk->stride;
        if (i + AHEAD < bulk->count)
            __builtin_prefetch(image + AHEAD * bulk->stride + HEADER_AT);
        if (!legal(bulk, image))
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

static inline const char *unit_at(const struct class *class, const char *image, uint32_t unit)
{
    return (unit & BULK_OF_RECORD ? class->record : image) + unit / 2;
}

static inline void put(__m128i *to, const char *from, bool stream)
{
    if (stream)
        _mm_stream_si128(to, _mm_loadu_si128((const __m128i *)from));
    else
        _mm_storeu_si128(to, _mm_loadu_si128((const __m128i *)from));
}

static inline void put_lines(const struct class *class, const char *image, char *to, bool stream)
{
    __m128i *out = (__m128i *)to;
    for (size_t i = 0; i < class->band_count; i++) {
        const struct band *band = &class->bands[i];
        const char *a = unit_at(class, image, band->unit[0]), *b = unit_at(class, image, band->unit[1]);
        const char *c = unit_at(class, image, band->unit[2]), *d = unit_at(class, image, band->unit[3]);
        for (uint32_t line = 0; line < band->lines; line++, out += 4) {
            put(out, a, stream);
            put(out + 1, b, stream);
            put(out + 2, c, stream);
            put(out + 3, d, stream);
            a += band->step[0], b += band->step[1], c += band->step[2], d += band->step[3];
        }
    }
}

static void store_record(const struct class *class, const char *image, char *to)
{
    put_lines(class, image, to, false);
    size_t unit = class->unit_count / 4 * 4, tail = class->unit_count * BULK_UNIT;
    for (; unit < class->unit_count; unit++)
        put((__m128i *)to + unit, unit_at(class, image, class->units[unit]), false);
    memcpy(to + tail, class->record + tail, class->size - tail);
}

static void write_record(const struct class *class, const char *image, char *to)
{
    for (size_t i = 0; i < class->piece_count; i++) {
        const struct piece *piece = &class->pieces[i];
        copy_piece(class->record + piece->to, image + piece->from, piece->size);
    }
    if (class->stream)
        put_lines(class, image, to, true); /* whole lines, and to is aligned */
    else
        store_record(class, image, to);
}

static struct class *class_of(const struct bulk *bulk, struct plan *plan, struct class *last, const char *image)
{
    if (!legal(bulk, image))
        return NULL;
    uint64_t key = key_of(bulk, image);
    return last && last->key == key ? last : plan_find(plan, key);
}

/* The lines of the next image that will be read: which ones depends on its class, so that hardware cannot foresee it. */
static inline void fetch(const struct class *class, const char *image)
{
    for (size_t i = 0; i < class->line_count; i++)
        __builtin_prefetch(image + class->lines[i]);
}

ssize_t bulk_move(const struct bulk *bulk, struct plan *plan, char *destination, bool in_order, uint32_t *indices)
{
    const char *image = bulk->source;
    struct class *class = bulk->count ? class_of(bulk, plan, NULL, image) : NULL;
    size_t i = 0;
    for (; i < bulk->count; i++, image += bulk->stride) {
        size_t slot = class ? in_order ? i : class->used : 0;
        if (!class || slot >= class->limit)
            break;
        struct class *next = NULL;
        if (i + 1 < bulk->count && (next = class_of(bulk, plan, class, image + bulk->stride)))
            fetch(next, image + bulk->stride);
        if (i + AHEAD < bulk->count)
            __builtin_prefetch(image + AHEAD * bulk->stride + HEADER_AT);
        write_record(class, image, destination + class->start + slot * class->step);
        if (indices)
            indices[class->first + class->used] = (uint32_t)i;
        class->used++;
        class = next;
    }
    _mm_sfence();
    return i < bulk->count ? (ssize_t)i : BULK_ALL_DONE;
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
        class->units[unit] = 2 * (from + unit * BULK_UNIT - to);
    append_piece(class, from + last * BULK_UNIT - to, last * BULK_UNIT, end - last * BULK_UNIT);
}

/* Whether the next line, of these units, goes on as the lines of the band do; its second line sets the steps. */
static bool continues(struct band *band, const uint32_t *units)
{
    uint32_t step[4];
    for (int i = 0; i < 4; i++) {
        uint32_t last = band->unit[i] / 2 + (band->lines - 1) * band->step[i], next = units[i] / 2;
        if (next < last || (units[i] ^ band->unit[i]) & BULK_OF_RECORD)
            return false;
        step[i] = next - last;
        if (band->lines > 1 && step[i] != band->step[i])
            return false;
    }
    memcpy(band->step, step, sizeof step);
    return true;
}

/* Registers of three kinds that take turns come from few lines at a time: looking back a little finds them. */
static void append_line(struct class *class, uint32_t line)
{
    for (size_t back = 1; back <= 8 && back <= class->line_count; back++)
        if (class->lines[class->line_count - back] == line)
            return;
    class->lines[class->line_count++] = line;
}

int class_finish(struct class *class)
{
    class->bands = calloc(class->unit_count / 4 + 1, sizeof *class->bands);
    class->lines = calloc(class->unit_count + 1, sizeof *class->lines);
    if (!class->bands || !class->lines)
        return -1;
    for (size_t at = 0; at + 4 <= class->unit_count; at += 4) {
        struct band *last = class->band_count ? &class->bands[class->band_count - 1] : NULL;
        if (!last || !continues(last, class->units + at)) {
            last = &class->bands[class->band_count++];
            memcpy(last->unit, class->units + at, sizeof last->unit);
        }
        last->lines++;
    }
    for (size_t at = 0; at < class->unit_count; at++)
        if (!(class->units[at] & BULK_OF_RECORD))
            append_line(class, class->units[at] / 2 / BULK_LINE * BULK_LINE);
    return 0;
}
