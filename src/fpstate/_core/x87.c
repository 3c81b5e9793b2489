/* x87 that is in use and holds nothing: FNINIT and EMMS empty the stack and leave the data registers as they are. A
 * processor that goes by values counts these, one that goes by writes counts FNINIT itself; every save and restore would
 * pay for it. XRSTOR with a clear bit makes x87 initial and not in use on either, FXRSTOR would be one more write. */
#include "arrangement.h"
#include "choice.h"

enum { LEGACY_BYTES = 512, TAGS_AT = 4, CODES_AND_TOP = 0x7F00 };

void x87_clear_dead(void)
{
    _Alignas(16) char image[LEGACY_BYTES];
    if (processor()->xgetbv1 && !(xgetbv(1) & X87))
        return;
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    uint16_t control = *(uint16_t *)image, status = *(uint16_t *)(image + 2);
    if (image[TAGS_AT] || control != FCW_INITIAL || status & ~CODES_AND_TOP || !initial_image())
        return;
    xstate_restore(initial_image(), X87);
}
