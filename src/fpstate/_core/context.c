/* Save, load, switch, park. Compiled with general registers only: a state may be live in the others. */
#include "context.h"
#include "cores.h"
#include "pack.h"
#include "shelf.h"

#include <errno.h>
#include <pthread.h>

enum { LINE = 64, LINES_AHEAD_OF_PACKED = 4, DISTANCE = 2 };
enum { ST_AT = 32, XMM_AT = 160, XMM_END = 416 };

static struct shelf areas = {.huge = true};
/* Copied here, where the loops below find them without a call. */
static struct arrangement full, none;
static void *nothing;
static struct {
    uint32_t offset, size;
} lines[63]; /* what to fetch of each component */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void prepare(void)
{
    areas.stride = shelf_stride(processor()->area_size);
    full = *whole();
    none = *initial_arrangement();
    nothing = initial_image();
    for (uint32_t i = 0; i < 63; i++) {
        if (!(full.room >> i & 1))
            continue;
        lines[i].offset = i > 1 ? arrangement_offset(&full, i) & ~(LINE - 1u) : 0;
        lines[i].size = i > 1 ? arrangement_offset(&full, i) + processor()->component[i].size - lines[i].offset : XMM_END;
    }
}

int context_init(struct context *context)
{
    int error = core_ready();
    if (error)
        return error;
    pthread_once(&once, prepare);
    *context = (struct context){0};
    return nothing ? 0 : ENOMEM;
}

static void forget(struct context *context)
{
    if (context->area)
        shelf_give(&areas, context->area);
    if (context->packed)
        packed_free(context->packed);
    *context = (struct context){0};
}

void context_destroy(struct context *context)
{
    forget(context);
}

size_t context_size(const struct context *context)
{
    return (context->area ? areas.stride : 0) + (context->packed ? packed_size(context->packed) : 0);
}

static void *new_area(void)
{
    char *area = shelf_take(&areas);
    if (area)
        *(uint32_t *)(area + MXCSR_AT) = MXCSR_INITIAL;
    return area;
}

int context_unpark(struct context *context)
{
    if (!context->packed)
        return 0;
    void *area = shelf_take(&areas);
    if (!area)
        return ENOMEM;
    unpack(context->packed, area);
    packed_free(context->packed);
    context->packed = NULL;
    context->area = area;
    return 0;
}

int context_park(struct context *context)
{
    if (!context->area || !packable())
        return 0;
    void *packed = NULL;
    if (*(uint64_t *)((char *)context->area + HEADER_AT)) {
        packed = pack(context->area);
        if (!packed)
            return ENOMEM;
    }
    shelf_give(&areas, context->area);
    context->area = NULL;
    context->packed = packed;
    return 0;
}

/* The area that a save goes to; what is packed has been overtaken by it. */
static void saved(struct context *context, void *area, uint64_t in_use)
{
    if (context->packed)
        packed_free(context->packed);
    context->packed = NULL;
    context->in_use = in_use;
    context->area = area;
    if (!in_use) {
        shelf_give(&areas, area);
        context->area = NULL;
    }
}

int context_save(struct context *context)
{
    void *area = context->area ? context->area : new_area();
    if (!area)
        return ENOMEM;
    saved(context, area, chosen_core->save(area, &full));
    return 0;
}

int context_restore(struct context *context)
{
    int error = context_unpark(context);
    if (error)
        return error;
    if (context->area)
        chosen_core->load(context->area, &full);
    else
        chosen_core->load(nothing, &none);
    return 0;
}

int context_write(struct context *context, const void *image)
{
    void *area = shelf_take(&areas);
    if (!area)
        return ENOMEM;
    bytes_copy(area, image, processor()->area_size);
    forget(context);
    saved(context, area, *(const uint64_t *)((const char *)image + HEADER_AT));
    return 0;
}

/* Where a component lies in an image; x87 has MXCSR between its pieces. */
static void make_initial(char *image, uint32_t component)
{
    if (component == 0) {
        bytes_clear(image, MXCSR_AT);
        bytes_clear(image + ST_AT, XMM_AT - ST_AT);
        *(uint16_t *)image = FCW_INITIAL;
    } else if (component == 1) {
        bytes_clear(image + XMM_AT, HEADER_AT - XMM_AT);
        *(uint32_t *)(image + MXCSR_AT) = MXCSR_INITIAL;
    } else {
        bytes_clear(image + arrangement_offset(&full, component), processor()->component[component].size);
    }
}

void context_read(const struct context *context, void *image)
{
    bytes_clear(image, processor()->area_size);
    *(uint64_t *)((char *)image + HEADER_AT + 8) = full.xcomp_bv;
    if (context->packed)
        unpack(context->packed, image);
    else if (context->area)
        bytes_copy(image, context->area, processor()->area_size);
    uint64_t in_use = *(const uint64_t *)((const char *)image + HEADER_AT);
    *(uint32_t *)((char *)image + MXCSR_AT + 4) = processor()->mxcsr_mask;
    for (uint32_t i = 0; i < 63; i++)
        if ((full.room & ~in_use) >> i & 1)
            make_initial(image, i);
}

static bool nothing_in_use(void)
{
    return processor()->xgetbv1 && !(xgetbv(1) & full.managed);
}

/* A context that has nothing in use needs no memory for that. */
static int leave_initial(struct context *from, struct context *to)
{
    int error = context_restore(to);
    if (!error)
        forget(from);
    return error;
}

/* One of them has no area: memory is found before anything changes. */
static int switch_with_memory(struct context *from, struct context *to)
{
    if (from == to)
        return context_save(from);
    if (!from->area && nothing_in_use())
        return leave_initial(from, to);
    void *area = from->area ? from->area : new_area();
    if (!area)
        return ENOMEM;
    int error = context_unpark(to);
    if (error) {
        if (!from->area)
            shelf_give(&areas, area);
        return error;
    }
    uint64_t in_use;
    chosen_core->exchange(area, to->area ? to->area : nothing, &full, to->area ? &full : &none, &in_use);
    saved(from, area, in_use);
    return 0;
}

int context_switch(struct context *from, struct context *to)
{
    if (!from->area || !to->area)
        return switch_with_memory(from, to);
    return chosen_core->exchange(from->area, to->area, &full, &full, &from->in_use);
}

/* Volatile: a function that does nothing but __builtin_prefetch counts as one without effect, and GCC drops its calls. */
static void fetch(const char *start, uint32_t size)
{
    for (const char *line = start; line < start + size; line += LINE)
        __asm__ volatile("prefetcht0 %0" : : "m"(*line));
}

void context_prefetch(const struct context *context)
{
    if (!context->area) {
        if (context->packed)
            fetch(context->packed, LINES_AHEAD_OF_PACKED * LINE);
        return;
    }
    const char *area = context->area;
    fetch(area + HEADER_AT, LINE);
    uint64_t rest = context->in_use & full.room;
    if (rest & LEGACY_MASK)
        fetch(area, XMM_END);
    for (rest &= ~(uint64_t)LEGACY_MASK; rest; rest &= rest - 1) {
        int component = __builtin_ctzll(rest);
        fetch(area + lines[component].offset, lines[component].size);
    }
}

int context_switch_next(struct context *from, struct context *to, const struct context *next)
{
    context_prefetch(next);
    return context_switch(from, to);
}

int context_rotate(struct context *const *order, size_t count, size_t *position, uint64_t switches, bool prefetch)
{
    size_t at = *position;
    for (uint64_t i = 0; i < switches; i++) {
        size_t next = at + 1 == count ? 0 : at + 1;
        if (prefetch) {
            size_t ahead = next + DISTANCE, struct_ahead = next + 2 * DISTANCE;
            __builtin_prefetch(order[struct_ahead >= count ? struct_ahead % count : struct_ahead]);
            context_prefetch(order[ahead >= count ? ahead % count : ahead]);
        }
        int error = context_switch(order[at], order[next]);
        if (error) {
            *position = at;
            return error;
        }
        at = next;
    }
    *position = at;
    return 0;
}
