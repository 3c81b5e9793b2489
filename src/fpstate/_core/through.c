/* An image through the registers of this thread: what XRSTOR makes of it, as XSAVEC or XSAVE writes that. */
#include "arrangement.h"
#include "legal.h"
#include "shelf.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

enum { SLACK = 64 };

static struct shelf copies;

static void size_copies(void)
{
    copies.stride = shelf_stride(processor()->area_size + SLACK);
}

int image_through_registers(const char *image, size_t size, void *area, struct refusal *refusal)
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
    *refusal = xstate_exchange(copy, area, mask, mask, processor()->xsavec);
    refusal->address += (uint64_t)image - (uint64_t)copy;
    xstate_restore(initial_image(), mask);
    control_words_write(mxcsr, fcw);
    signals_release();
    shelf_give(&copies, copy);
    uint64_t *in_use = (uint64_t *)((char *)area + HEADER_AT);
    if (refusal->signal)
        return -1;
    if (!processor()->xsavec && *(uint32_t *)((char *)area + MXCSR_AT) != MXCSR_INITIAL)
        *in_use |= SSE; /* XSAVE counts XMM alone in XSTATE_BV[1], and writes MXCSR all the same */
    return 0;
}
