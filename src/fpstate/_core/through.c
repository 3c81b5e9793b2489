/* An image through the registers of this thread: what XRSTOR makes of it, as XSAVEC or XSAVE writes that. */
#include "legal.h"

bool image_through_registers(const char *image, void *area, struct refusal *refusal)
{
    uint64_t mask = processor()->managed_mask;
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    *refusal = xstate_exchange(image, area, mask, mask, processor()->xsavec);
    xstate_restore(initial_image(), mask);
    control_words_write(mxcsr, fcw);
    uint64_t *in_use = (uint64_t *)((char *)area + HEADER_AT);
    if (!processor()->xsavec && *(uint32_t *)((char *)area + MXCSR_AT) != MXCSR_INITIAL)
        *in_use |= 2; /* XSAVE counts XMM alone in XSTATE_BV[1], and writes MXCSR all the same */
    return !refusal->signal;
}
