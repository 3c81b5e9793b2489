/* Many images at equal strides: counted by class, and their registers moved into records.
 *
 * A class is what images have in common that decides which bytes move: the XSTATE_BV bits of a mask and, where
 * AVX may carry MXCSR without SSE, whether it does. */
#ifndef FPSTATE_BULK_H
#define FPSTATE_BULK_H

#include "core.h"

enum { BULK_LINE = 64, BULK_UNIT = 16, BULK_CLASSES = 4096, BULK_SLOTS = 2 * BULK_CLASSES };
enum { BULK_OF_RECORD = 1, BULK_WHOLE_LINE = 2, BULK_FLAGS = 4 }; /* of a unit; the second of a line's first */
enum { BULK_LONGEST = 1 << 29 };                                 /* image or record, so that units hold its offsets */
enum { BULK_ALL_DONE = -1, BULK_TOO_MANY = -2 }; /* instead of the index of an image */

struct piece {
    uint32_t from, to, size;
};

/* A record is written in units of 16 bytes, each from the image or, where a unit is not all of one piece, from a
 * record that is kept for that: what no piece covers stands there from the start. */
struct class {
    uint64_t key;
    size_t start, step, limit; /* of its records: first byte, distance, how many there are */
    size_t used;               /* how many are written */
    size_t first;              /* where its images begin in the list of indices */
    char *record;
    size_t size;               /* how much of it is written: the tail behind the last unit too */
    uint32_t *units;           /* BULK_FLAGS times the offset, and flags */
    size_t unit_count;
    struct piece *pieces;      /* into the record */
    size_t piece_count;
    bool stream;
};

struct bulk {
    const char *source;
    size_t stride, count;
    uint64_t key_mask;
    bool avx_carries_mxcsr; /* images whose MXCSR only AVX states are a class of their own, with bit 63 in the key */
};

struct plan {
    struct class *classes;
    size_t count;
    uint16_t slots[BULK_SLOTS]; /* 1 + index of the class, by hash of its key */
};

struct plan *plan_new(size_t classes); /* NULL where there is no memory */
void plan_free(struct plan *plan);
struct class *plan_find(const struct plan *plan, uint64_t key); /* NULL: there is none */
struct class *plan_add(struct plan *plan, uint64_t key);        /* there must be room for it */

/* Plans the bytes from image to record. Units and room for two more pieces must be there. */
void class_append(struct class *class, uint32_t from, uint32_t to, uint32_t size);

void class_finish(struct class *class); /* after the last move */

/* Counts images by class, in limit. Returns the index of the first whose XCOMP_BV is another or whose XSTATE_BV has
 * more than the allowed bits. */
ssize_t bulk_count(const struct bulk *bulk, struct plan *plan, uint64_t xcomp_bv, uint64_t allowed);

/* Makes a record of each image: in the order of the images, or class by class. Returns the index of the first image
 * that has no class, or no record left for it. indices may be NULL. */
ssize_t bulk_move(const struct bulk *bulk, struct plan *plan, char *destination, bool in_order, uint32_t *indices);

#endif
