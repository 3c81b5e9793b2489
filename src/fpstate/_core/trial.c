/* Compiled with general registers only: states are live in the others. Absent components are initial, x87's pointers
 * count only while an exception is pending, and components whose bytes are not free to choose are left out. */
#include "trial.h"
#include "shelf.h"

#include <sys/mman.h>

enum { PAGE = 4096, STATES = 128, HEADER_NUMBER = 63, LEGACY_BYTES = 512 };
enum { ES = 1 << 7, X87_COMPARED = 5, ST_AT = 32, ST_BYTES = 10, XMM_AT = 160, XMM_BYTES = 256, POINTERS_AT = 6 };
#define FREELY_CHOSEN ((uint64_t)(X87 | SSE | AVX | AVX512))
#define POISON 0xA5A5A5A5A5A5A5A5ull

struct trial {
    uint64_t chance;
    size_t mapped, stride;
    uint32_t count;
    uint64_t in_use[STATES]; /* of the states, as asked for */
    bool control_only[STATES];
    char *mine, *from, *to, *check, *states;
};

/* splitmix64 */
static uint64_t next(struct trial *trial)
{
    uint64_t z = trial->chance += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

static void fill(struct trial *trial, char *at, size_t size)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t value = next(trial);
        *(uint64_t *)(at + i) = value & 7 ? value : 0;
    }
}

static void random_x87(struct trial *trial, char *image)
{
    *(uint16_t *)image = (uint16_t)((next(trial) & 0x1F3F) | 0x40);
    *(uint16_t *)(image + 2) = (uint16_t)next(trial);
    *(uint8_t *)(image + 4) = (uint8_t)next(trial);
    *(uint16_t *)(image + 6) = next(trial) & 0x7FF;
    *(uint64_t *)(image + 8) = next(trial) >> 17;
    *(uint64_t *)(image + 16) = next(trial) >> 17;
    fill(trial, image + ST_AT, XMM_AT - ST_AT);
    for (char *pad = image + ST_AT + ST_BYTES; pad < image + XMM_AT; pad += 16)
        bytes_clear(pad, 16 - ST_BYTES);
}

/* A random state, as the processor keeps it: loaded, and saved again. */
static void make_state(struct trial *trial, uint32_t number)
{
    char *image = trial->states + number * trial->stride;
    uint64_t in_use = trial->in_use[number];
    bytes_clear(image, trial->stride);
    *(uint16_t *)image = FCW_INITIAL;
    *(uint32_t *)(image + MXCSR_AT) = MXCSR_INITIAL;
    *(uint64_t *)(image + HEADER_AT) = in_use;
    *(uint64_t *)(image + HEADER_AT + 8) = whole()->xcomp_bv;
    if (in_use & X87)
        random_x87(trial, image);
    if (in_use & SSE) {
        *(uint32_t *)(image + MXCSR_AT) = (uint32_t)next(trial) & processor()->mxcsr_mask;
        if (!trial->control_only[number])
            fill(trial, image + XMM_AT, XMM_BYTES);
    }
    for (uint32_t i = 2; i <= HI16_ZMM_NUMBER; i++)
        if (in_use >> i & 1)
            fill(trial, image + arrangement_offset(whole(), i), processor()->component[i].size);
    portable_load(image, whole());
    bytes_clear(image, trial->stride);
    *(uint32_t *)(image + MXCSR_AT) = MXCSR_INITIAL;
    portable_core()->save(image, whole());
}

static void list_states(struct trial *trial)
{
    uint64_t free = processor()->managed_mask & FREELY_CHOSEN, subset = 0;
    do {
        trial->in_use[trial->count++] = subset;
        if (subset & SSE && trial->count < STATES) {
            trial->in_use[trial->count] = subset;
            trial->control_only[trial->count++] = true;
        }
        subset = (subset - free) & free;
    } while (subset && trial->count < STATES);
}

struct trial *trial_open(uint64_t seed)
{
    size_t stride = shelf_stride(processor()->area_size + TRIAL_SLACK), size = (STATES + 4) * stride + PAGE;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    struct trial *trial = (struct trial *)memory;
    *trial = (struct trial){.chance = seed, .mapped = size, .stride = stride};
    trial->mine = memory + PAGE;
    trial->from = trial->mine + stride;
    trial->to = trial->from + stride;
    trial->check = trial->to + stride;
    trial->states = trial->check + stride;
    *(uint32_t *)(trial->mine + MXCSR_AT) = MXCSR_INITIAL;
    portable_core()->save(trial->mine, whole());
    list_states(trial);
    for (uint32_t i = 0; i < trial->count; i++)
        make_state(trial, i);
    return trial;
}

void trial_close(struct trial *trial)
{
    portable_load(trial->mine, whole());
    munmap(trial, trial->mapped);
}

/* Bytes of two images that differ where both are as given, or initial where they are absent (NULL). */
static bool differ(const char *one, const char *other, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if ((one ? one[i] : 0) != (other ? other[i] : 0))
            return true;
    return false;
}

static bool words_differ(const char *one, const char *other, size_t size)
{
    uint64_t any = 0;
    for (size_t i = 0; i < size; i += 8)
        any |= (one ? *(const uint64_t *)(one + i) : 0) ^ (other ? *(const uint64_t *)(other + i) : 0);
    return any != 0;
}

extern const char initial_legacy[LEGACY_BYTES];

static bool x87_differs(const char *one, const char *other)
{
    one = one ? one : initial_legacy;
    other = other ? other : initial_legacy;
    if (differ(one, other, X87_COMPARED))
        return true;
    for (uint32_t at = ST_AT; at < XMM_AT; at += 16)
        if (differ(one + at, other + at, ST_BYTES))
            return true;
    return (one[2] & other[2] & ES) && differ(one + POINTERS_AT, other + POINTERS_AT, MXCSR_AT - POINTERS_AT);
}

static bool sse_differs(const char *one, const char *other)
{
    one = one ? one : initial_legacy;
    other = other ? other : initial_legacy;
    return differ(one + MXCSR_AT, other + MXCSR_AT, 4) || words_differ(one + XMM_AT, other + XMM_AT, XMM_BYTES);
}

/* The first component in which two images differ, or -1. */
static int difference(const char *one, const struct arrangement *one_arrangement, const char *other,
                      const struct arrangement *other_arrangement)
{
    uint64_t one_bv = *(const uint64_t *)(one + HEADER_AT), other_bv = *(const uint64_t *)(other + HEADER_AT);
    for (uint32_t i = 0; i <= HI16_ZMM_NUMBER; i++) {
        if (!((one_bv | other_bv) >> i & 1))
            continue;
        const char *in_one = one_bv >> i & 1 ? one : NULL, *in_other = other_bv >> i & 1 ? other : NULL;
        if (i > 1 && in_one)
            in_one += arrangement_offset(one_arrangement, i);
        if (i > 1 && in_other)
            in_other += arrangement_offset(other_arrangement, i);
        if (i == 0 ? x87_differs(in_one, in_other)
                   : i == 1 ? sse_differs(in_one, in_other)
                            : words_differ(in_one, in_other, processor()->component[i].size))
            return (int)i;
    }
    return -1;
}

/* What XRSTOR and the rules ask of a header. */
static bool header_illegal(const char *image, const struct arrangement *arrangement)
{
    const uint64_t *header = (const uint64_t *)(image + HEADER_AT);
    uint64_t reserved = 0;
    for (int i = 2; i < 8; i++)
        reserved |= header[i];
    return header[0] & ~arrangement->room || header[1] != arrangement->xcomp_bv || reserved ||
           *(const uint32_t *)(image + MXCSR_AT) & arrangement->mxcsr_reserved;
}

/* Poison wherever a core must not look, or must write. */
static void poison(char *image, size_t size, const struct arrangement *arrangement)
{
    for (size_t i = 0; i < size; i += 8)
        *(uint64_t *)(image + i) = POISON;
    bytes_clear(image + HEADER_AT, LEGACY_AND_HEADER - HEADER_AT);
    *(uint64_t *)(image + HEADER_AT + 8) = arrangement->xcomp_bv;
    *(uint64_t *)(image + MXCSR_AT) = MXCSR_INITIAL;
}

static void lay_out(const char *state, char *image, const struct arrangement *arrangement)
{
    uint64_t in_use = *(const uint64_t *)(state + HEADER_AT);
    *(uint64_t *)(image + HEADER_AT) = in_use;
    if (in_use & X87) {
        bytes_copy(image, state, MXCSR_AT);
        bytes_copy(image + ST_AT, state + ST_AT, XMM_AT - ST_AT);
    }
    if (in_use & SSE) {
        bytes_copy(image + MXCSR_AT, state + MXCSR_AT, 8);
        bytes_copy(image + XMM_AT, state + XMM_AT, XMM_BYTES);
    }
    for (uint32_t i = 2; i <= HI16_ZMM_NUMBER; i++)
        if (in_use >> i & 1)
            bytes_copy(image + arrangement_offset(arrangement, i), state + arrangement_offset(whole(), i),
                       processor()->component[i].size);
}

static void note(struct trial_report *report, const struct trial *trial, uint32_t x, uint32_t y, int component,
                 bool saved)
{
    if (report->mismatches++)
        return;
    report->from = trial->in_use[x];
    report->to = trial->in_use[y];
    report->component = (uint32_t)component;
    report->saved = saved;
}

/* State x is in the registers, y in an area; one switch; then x must be in an area and y in the registers. */
static void try_pair(struct trial *trial, const struct core *core, const struct arrangement *arrangement, uint32_t x,
                     uint32_t y, struct trial_report *report)
{
    const char *from = trial->states + x * trial->stride, *to = trial->states + y * trial->stride;
    poison(trial->from, trial->stride, arrangement);
    poison(trial->to, trial->stride, arrangement);
    lay_out(to, trial->to, arrangement);
    portable_load(from, whole());
    uint64_t in_use;
    core->exchange(trial->from, trial->to, arrangement, arrangement, &in_use);
    portable_core()->save(trial->check, whole());
    report->pairs++;
    int wrong = difference(trial->from, arrangement, from, whole());
    if (wrong < 0 && header_illegal(trial->from, arrangement))
        wrong = HEADER_NUMBER;
    if (wrong >= 0) {
        note(report, trial, x, y, wrong, true);
        return;
    }
    wrong = difference(trial->check, whole(), to, whole());
    if (wrong >= 0)
        note(report, trial, x, y, wrong, false);
}

void trial_every_pair(struct trial *trial, const struct core *core, const struct arrangement *arrangement,
                      struct trial_report *report)
{
    *report = (struct trial_report){0};
    for (uint32_t x = 0; x < trial->count; x++)
        for (uint32_t y = 0; y < trial->count; y++)
            try_pair(trial, core, arrangement, x, y, report);
}

void trial_random_pairs(struct trial *trial, const struct core *core, const struct arrangement *arrangement,
                        uint64_t count, struct trial_report *report)
{
    *report = (struct trial_report){0};
    for (uint64_t i = 0; i < count; i++) {
        uint32_t x = (uint32_t)(next(trial) % trial->count), y = (uint32_t)(next(trial) % trial->count);
        try_pair(trial, core, arrangement, x, y, report);
        make_state(trial, i & 1 ? x : y);
    }
}

static uint32_t state_with(const struct trial *trial, uint64_t in_use)
{
    uint32_t number = 0;
    while (number + 1 < trial->count && trial->in_use[number] != in_use)
        number++;
    return number;
}

static void place_state(struct trial *trial, uint64_t in_use, char *image)
{
    const char *state = trial->states + state_with(trial, in_use & FREELY_CHOSEN) * trial->stride;
    poison(image, trial->stride, whole());
    lay_out(state, image, whole());
}

uint64_t trial_cycles(struct trial *trial, const struct core *core, uint64_t one, uint64_t other, uint32_t rounds,
                      uint64_t *settled)
{
    place_state(trial, processor()->managed_mask, trial->check);
    place_state(trial, one, trial->from);
    place_state(trial, other, trial->to);
    portable_load(trial->check, whole());
    core->exchange(trial->check, trial->from, whole(), whole(), settled);
    core->exchange(trial->from, trial->to, whole(), whole(), settled);
    core->exchange(trial->to, trial->from, whole(), whole(), settled);
    uint64_t start = __builtin_ia32_rdtsc();
    for (uint32_t i = 0; i < rounds; i++) {
        core->exchange(trial->from, trial->to, whole(), whole(), settled);
        core->exchange(trial->to, trial->from, whole(), whole(), settled);
    }
    return __builtin_ia32_rdtsc() - start;
}
