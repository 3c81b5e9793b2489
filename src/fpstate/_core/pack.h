/* A state register by register: only those that are not zero, in a few hundred bytes where an image takes thousands. */
#ifndef FPSTATE_PACK_H
#define FPSTATE_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool packable(void); /* whether areas are of a size that can be packed */
void *pack(const void *area); /* NULL where there is no memory */
void unpack(const void *packed, void *area); /* into zeros; exactly what was packed, XSTATE_BV too */
size_t packed_size(const void *packed); /* bytes that it takes in memory */
void packed_free(void *packed);

#endif
