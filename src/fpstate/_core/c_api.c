/* What fpstate.h promises, over contexts. Compiled with general registers only: a state may be live in the others. */
#include "c_api.h"

#include "choice.h"
#include "context.h"
#include "shelf.h"

#include <errno.h>

enum { MAGIC = 0x43505346, ALIGNMENT = 64, HEADER_XCOMP_AT = 520 }; /* "FSPC" */

/* In storage of the caller's the area follows, and stays: no save has to look for memory. */
struct fpstate_context {
    struct context state;
    uint32_t magic;
    bool in_place;
};
_Static_assert(sizeof(struct fpstate_context) <= ALIGNMENT, "the area follows after one line");
_Static_assert(sizeof(struct fpstate_control) == sizeof(struct control), "fpstate_control");
_Static_assert(offsetof(struct fpstate_control, fcw) == offsetof(struct control, fcw), "fpstate_control");

static struct shelf handles = {.stride = ALIGNMENT};
/* Known before there is a table, or a context to name. */
static uint32_t mxcsr_reserved;
static const struct arrangement *full, *none;

static bool is_context(const struct fpstate_context *context)
{
    return context && context->magic == MAGIC;
}

static const char *api_core(void)
{
    return core_ready() ? NULL : chosen_core->name;
}

static const char *api_core_reason(void)
{
    return core_choice()->reason;
}

static size_t api_context_size(void)
{
    return ALIGNMENT + ((processor()->area_size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1));
}

static size_t api_context_alignment(void)
{
    return ALIGNMENT;
}

static int first_of_all(struct context *state)
{
    full = whole();
    none = initial_arrangement();
    return context_init(state);
}

static int api_create(struct fpstate_context **context)
{
    if (!context)
        return EINVAL;
    struct fpstate_context made = {.magic = MAGIC};
    int error = first_of_all(&made.state);
    struct fpstate_context *place = error ? NULL : shelf_take(&handles);
    if (!place)
        return error ? error : ENOMEM;
    *place = made;
    *context = place;
    return 0;
}

/* An image of nothing, in the form that the saves of this processor write. */
static void *initial_area(char *area)
{
    bytes_clear(area, processor()->area_size);
    *(uint32_t *)(area + MXCSR_AT) = MXCSR_INITIAL;
    *(uint64_t *)(area + HEADER_XCOMP_AT) = full->xcomp_bv;
    return area;
}

static int api_create_in(void *storage, size_t size, struct fpstate_context **context)
{
    if (!context || !storage || (uintptr_t)storage % ALIGNMENT || size < api_context_size())
        return EINVAL;
    struct fpstate_context made = {.magic = MAGIC, .in_place = true};
    int error = first_of_all(&made.state);
    if (error)
        return error;
    made.state.area = initial_area((char *)storage + ALIGNMENT);
    *context = storage;
    **context = made;
    return 0;
}

static void api_destroy(struct fpstate_context *context)
{
    if (!is_context(context))
        return;
    if (context->in_place) {
        bytes_clear(context, api_context_size());
        return;
    }
    context_destroy(&context->state);
    shelf_give(&handles, context);
}

static int api_save(struct fpstate_context *context)
{
    if (!is_context(context))
        return EINVAL;
    if (!context->in_place)
        return context_save(&context->state);
    context->state.in_use = chosen_core->save(context->state.area, full);
    return 0;
}

static int api_restore(struct fpstate_context *context)
{
    return is_context(context) ? context_restore(&context->state) : EINVAL;
}

/* context_switch would give back an area that nothing is in use in. */
static int switch_in_place(struct context *from, struct context *to)
{
    int error = context_unpark(to);
    if (error)
        return error;
    if (!to->area)
        return chosen_core->exchange(from->area, initial_image(), full, none, &from->in_use);
    return chosen_core->exchange(from->area, to->area, full, full, &from->in_use);
}

static int api_switch_state(struct fpstate_context *from, struct fpstate_context *to)
{
    if (!is_context(from) || !is_context(to))
        return EINVAL;
    return from->in_place ? switch_in_place(&from->state, &to->state) : context_switch(&from->state, &to->state);
}

static int api_switch_control(struct fpstate_control *from, const struct fpstate_control *to)
{
    if (!from || !to)
        return EINVAL;
    /* A copy: others may write to what is checked. Volatile: nothing is read twice. */
    const volatile struct fpstate_control *theirs = to;
    struct control wanted = {.mxcsr = theirs->mxcsr, .fcw = theirs->fcw};
    if (wanted.mxcsr & mxcsr_reserved)
        return EINVAL;
    if (from == to)
        wanted = (struct control){.mxcsr = mxcsr_read(), .fcw = fcw_read()};
    control_exchange((struct control *)from, &wanted);
    return 0;
}

static void api_prefetch(const struct fpstate_context *context)
{
    if (is_context(context))
        context_prefetch(&context->state);
}

static int api_park(struct fpstate_context *context)
{
    if (!is_context(context))
        return EINVAL;
    return context->in_place ? 0 : context_park(&context->state);
}

static const struct fpstate_api table = {
    .version = FPSTATE_API_VERSION,
    .size = sizeof table,
    .core = api_core,
    .core_reason = api_core_reason,
    .context_size = api_context_size,
    .context_alignment = api_context_alignment,
    .create = api_create,
    .create_in = api_create_in,
    .destroy = api_destroy,
    .save = api_save,
    .restore = api_restore,
    .switch_state = api_switch_state,
    .switch_control = api_switch_control,
    .prefetch = api_prefetch,
    .park = api_park,
};

const struct fpstate_api *c_api(void)
{
    mxcsr_reserved = ~processor()->mxcsr_mask;
    return &table;
}
