/* Shelves: blocks of one size each, scrubbed when they come back. Code here touches no vector register. */
#ifndef FPSTATE_SHELF_H
#define FPSTATE_SHELF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct region;
struct shelf {
    uint32_t stride;        /* bytes from block to block */
    bool huge;              /* on transparent huge pages where the kernel has them */
    struct region *room;    /* regions with free blocks */
    size_t regions, taken;
};

uint32_t shelf_stride(uint32_t size); /* a multiple of 64, never one of 4096: blocks that far apart alias */
void *shelf_take(struct shelf *shelf); /* zeros, or NULL where there is no memory */
void shelf_give(struct shelf *shelf, void *block);
void shelf_give_part(struct shelf *shelf, void *block, size_t used); /* the rest is zeros as it was taken */
void bytes_copy(void *to, const void *from, size_t size); /* without vector registers */
void bytes_clear(void *at, size_t size);

#endif
