/* Many images at equal strides: counted by class, and their registers moved into records.
 *
 * A class is what images have in common that decides which bytes move: the XSTATE_BV bits of a mask and, where
 * AVX may carry MXCSR without SSE, whether it does. */
#ifndef FPSTATE_BULK_H
#define FPSTATE_BULK_H

#include "core.h"

enum { BULK_LINE = 64, BULK_UNIT = 16, BULK_CLASSES = 4096, BULK_SLOTS = 2 * BULK_CLASSES };
enum { BULK_OF_RECORD = 1 };     /* in a unit: it comes from the record, not from the image */
enum { BULK_LONGEST = 1 << 30 }; /* image or record, so that units hold its offsets */
enum { BULK_ALL_DONE = -1, BULK_TOO_MANY = -2 }; /* instead of the index of an image */

struct piece {
    uint32_t from, to, size;
};

/* Lines in a row whose four units each advance by equal steps: xmm0, ymm0h and zmm0h, then xmm1, ymm1h and zmm1h. */
struct band {
    uint32_t unit[4], step[4], lines;
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
    uint32_t *units;           /* twice the offset, and BULK_OF_RECORD */
    size_t unit_count;
    struct band *bands;        /* of all units but those behind the last whole line */
    size_t band_count;
    uint32_t *lines;           /* of the image, by their first bytes: those that are read */
    size_t line_count;
    struct piece *pieces;      /* into the record */
    size_t piece_count;
    bool stream;
};

struct bulk {
    const char *source;
    size_t stride, count;
    uint64_t xcomp_bv, allowed; /* of legal images: XCOMP_BV, and what XSTATE_BV may have */
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

int class_finish(struct class *class); /* after the last move; -1 where there is no memory */

/* Counts images by class, in limit. Returns the index of the first illegal one. */
ssize_t bulk_count(const struct bulk *bulk, struct plan *plan);

/* Makes a record of each image: in the order of the images, or class by class. Returns the index of the first image
 * that is illegal, or has no class, or no record left for it. indices may be NULL. */
ssize_t bulk_move(const struct bulk *bulk, struct plan *plan, char *destination, bool in_order, uint32_t *indices);

#endif
