/* The areas are those of whole(). A packed state is: struct packed, a bit for each unit of the components that are in
 * use, then the units that are not zero. */
#include "arrangement.h"
#include "pack.h"
#include "shelf.h"

#include <pthread.h>

enum { UNITS = 512, STEP = 32, CHUNK = 64, SHELVES = 16384 / STEP };

/* One register, or a piece of a component whose registers are not known here. */
struct unit {
    uint16_t offset, size; /* bytes; sizes are multiples of 8 */
    uint8_t component;
};

struct packed {
    uint64_t in_use;
    uint32_t size;
    unsigned char bits[];
};

static struct unit units[UNITS];
static size_t unit_count;
static struct shelf shelves[SHELVES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void add(uint32_t component, uint32_t offset, uint32_t size, uint32_t count)
{
    for (uint32_t i = 0; i < count && unit_count < UNITS; i++)
        units[unit_count++] = (struct unit){(uint16_t)(offset + i * size), (uint16_t)size, (uint8_t)component};
}

static void make_units(void)
{
    static const uint32_t register_size[] = {[2] = 16, [OPMASK_NUMBER] = 8, [ZMM_HI256_NUMBER] = 32};
    add(0, 0, 8, 3); /* control words, FIP, FDP */
    add(0, 32, 16, 8);
    add(1, MXCSR_AT, 8, 1);
    add(1, 160, 16, 16);
    for (uint32_t i = 2; i < 63; i++) {
        if (!(whole()->room >> i & 1))
            continue;
        uint32_t offset = arrangement_offset(whole(), i), size = processor()->component[i].size;
        uint32_t step = i < sizeof register_size / sizeof *register_size ? register_size[i] : 0;
        if (!step || size % step)
            step = CHUNK;
        add(i, offset, step, size / step);
        if (size % step)
            add(i, offset + size / step * step, size % step, 1);
    }
    for (uint32_t i = 0; i < SHELVES; i++)
        shelves[i].stride = (i + 1) * STEP;
}

static bool zero(const char *at, uint32_t size)
{
    uint64_t any = 0;
    for (uint32_t i = 0; i < size; i += 8)
        any |= *(const uint64_t *)(at + i);
    return any == 0;
}

/* Units are short and many: a string instruction for each would cost more than its bytes. */
static void copy_words(char *to, const char *from, uint32_t size)
{
    for (uint32_t i = 0; i < size; i += 8)
        *(uint64_t *)(to + i) = *(const uint64_t *)(from + i);
}

/* Which units of a state are not zero, a bit for each unit of the components in use. */
static uint32_t survey(const char *area, uint64_t in_use, unsigned char bits[UNITS / 8], uint32_t *bit_bytes)
{
    uint32_t present = 0, bytes = 0;
    for (size_t i = 0; i < unit_count; i++) {
        if (!(in_use >> units[i].component & 1))
            continue;
        if (present % 8 == 0)
            bits[present / 8] = 0;
        if (!zero(area + units[i].offset, units[i].size)) {
            bits[present / 8] |= (unsigned char)(1u << present % 8);
            bytes += units[i].size;
        }
        present++;
    }
    *bit_bytes = (present + 7) / 8;
    return bytes;
}

static uint32_t data_at(uint32_t bit_bytes)
{
    return (uint32_t)((offsetof(struct packed, bits) + bit_bytes + 7) & ~7ul);
}

static struct shelf *shelf_for(uint32_t size)
{
    return &shelves[(size - 1) / STEP];
}

/* Then there are units enough too: few registers are shorter than a chunk. */
bool packable(void)
{
    return processor()->area_size + data_at(UNITS / 8) <= SHELVES * STEP;
}

void *pack(const void *area)
{
    const char *image = area;
    unsigned char bits[UNITS / 8];
    uint32_t bit_bytes;
    pthread_once(&once, make_units);
    uint64_t in_use = *(const uint64_t *)(image + HEADER_AT);
    uint32_t data = survey(image, in_use, bits, &bit_bytes), size = data_at(bit_bytes) + data;
    struct packed *packed = shelf_take(shelf_for(size));
    if (!packed)
        return NULL;
    packed->in_use = in_use;
    packed->size = size;
    bytes_copy(packed->bits, bits, bit_bytes);
    char *to = (char *)packed + data_at(bit_bytes);
    uint32_t present = 0;
    for (size_t i = 0; i < unit_count; i++) {
        if (!(in_use >> units[i].component & 1))
            continue;
        if (bits[present / 8] >> present % 8 & 1) {
            copy_words(to, image + units[i].offset, units[i].size);
            to += units[i].size;
        }
        present++;
    }
    return packed;
}

static uint32_t bits_of(uint64_t in_use)
{
    uint32_t present = 0;
    for (size_t i = 0; i < unit_count; i++)
        present += in_use >> units[i].component & 1;
    return (present + 7) / 8;
}

void unpack(const void *from, void *area)
{
    const struct packed *packed = from;
    char *image = area;
    *(uint32_t *)(image + MXCSR_AT) = MXCSR_INITIAL;
    *(uint64_t *)(image + HEADER_AT) = packed->in_use;
    *(uint64_t *)(image + HEADER_AT + 8) = whole()->xcomp_bv;
    const char *data = (const char *)packed + data_at(bits_of(packed->in_use));
    uint32_t present = 0;
    for (size_t i = 0; i < unit_count; i++) {
        if (!(packed->in_use >> units[i].component & 1))
            continue;
        if (packed->bits[present / 8] >> present % 8 & 1) {
            copy_words(image + units[i].offset, data, units[i].size);
            data += units[i].size;
        } else if (units[i].offset == MXCSR_AT) {
            *(uint64_t *)(image + MXCSR_AT) = 0;
        }
        present++;
    }
}

size_t packed_size(const void *packed)
{
    return shelf_for(((const struct packed *)packed)->size)->stride;
}

void packed_free(void *packed)
{
    shelf_give(shelf_for(((struct packed *)packed)->size), packed);
}
