/* Where areas have their components: as this processor lays them out for a mask, or as a test says. */
#ifndef FPSTATE_ARRANGEMENT_H
#define FPSTATE_ARRANGEMENT_H

#include "core.h"

enum {
    X87 = 1 << 0, SSE = 1 << 1, AVX = 1 << 2, OPMASK = 1 << 5, ZMM_HI256 = 1 << 6, HI16_ZMM = 1 << 7,
    AVX512 = OPMASK | ZMM_HI256 | HI16_ZMM,
};
enum { OPMASK_NUMBER = 5, ZMM_HI256_NUMBER = 6, HI16_ZMM_NUMBER = 7 };
#define COMPACTED (1ull << 63)

/* An area for ``room`` in the processor's compacted format, or in its standard one. */
struct arrangement arrangement_of(uint64_t room, bool compact);
/* Where a component lies in it; 0 and 1 lie in the legacy region. */
uint32_t arrangement_offset(const struct arrangement *arrangement, uint32_t component);
/* Bytes up to the end of the last of these components. */
size_t arrangement_extent(const struct arrangement *arrangement, uint64_t components);
/* What contexts have: everything managed, compacted where there is XSAVEC. */
const struct arrangement *whole(void);
/* The read-only area that all idle contexts share. */
const struct arrangement *initial_arrangement(void);

#endif
