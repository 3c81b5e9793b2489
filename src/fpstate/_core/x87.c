/* x87 that is in use and holds nothing: FNINIT and EMMS empty the stack and leave the data registers as they are, and a
 * processor that goes by values then counts them. Every save and restore would pay for it. */
#include "choice.h"
#include "shelf.h"

enum { LEGACY_BYTES = 512, ST_AT = 32, XMM_AT = 160, TAGS_AT = 4, CODES_AND_TOP = 0x7F00 };

void x87_clear_dead(void)
{
    _Alignas(16) char image[LEGACY_BYTES];
    if (processor()->xgetbv1 && !(xgetbv(1) & X87))
        return;
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    uint16_t control = *(uint16_t *)image, status = *(uint16_t *)(image + 2);
    if (image[TAGS_AT] || control != FCW_INITIAL || status & ~CODES_AND_TOP)
        return;
    bytes_clear(image + 2, MXCSR_AT - 2);
    bytes_clear(image + ST_AT, XMM_AT - ST_AT);
    __asm__ volatile("fxrstor64 %0" : : "m"(image));
}
