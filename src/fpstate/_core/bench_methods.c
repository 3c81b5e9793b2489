/* Baselines for measurements: slots of images, and walks over them with the plain instructions. No part of any switch. */
#include "types.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, LINE = 64, MOST_RUNS = 64 };

void walk_xsavec(char *slots, uint64_t stride, const uint32_t *order, uint64_t steps, uint64_t mask);
void walk_fxsave(char *slots, uint64_t stride, const uint32_t *order, uint64_t steps, uint64_t mask);

/* The lines of a slot that its image uses, as stretches. */
struct run {
    uint32_t first, count;
};

struct slots {
    char *memory; /* as mapped */
    char *first;  /* on a huge page's boundary */
    size_t mapped, stride, count;
    struct run runs[MOST_RUNS];
    size_t run_count;
};

static const char SLOTS[] = "fpstate._core.bench_slots";

static void slots_free(struct slots *slots)
{
    if (slots->memory) {
        explicit_bzero(slots->first, slots->stride * slots->count);
        munmap(slots->memory, slots->mapped);
    }
    free(slots);
}

static void slots_destroy(PyObject *capsule)
{
    slots_free(PyCapsule_GetPointer(capsule, SLOTS));
}

static size_t image_size(void)
{
    const struct processor *found = processor();
    size_t size = LEGACY_AND_HEADER;
    for (size_t i = 2; i < sizeof found->component / sizeof *found->component; i++) {
        size_t end = (size_t)found->component[i].compact_offset + found->component[i].size;
        if (found->managed_mask >> i & 1 && end > size)
            size = end;
    }
    return (size + LINE - 1) / LINE * LINE;
}

static void note_lines(struct slots *slots, uint32_t offset, uint32_t size)
{
    struct run run = {offset / LINE, (offset + size - 1) / LINE - offset / LINE + 1};
    slots->runs[slots->run_count++] = run;
}

/* What an XRSTOR of this image has to read: legacy region and header, and each component that is in use. */
static void note_used_lines(struct slots *slots, uint64_t xstate_bv)
{
    const struct processor *found = processor();
    note_lines(slots, 0, LEGACY_AND_HEADER);
    for (size_t i = 2; i < sizeof found->component / sizeof *found->component; i++)
        if (xstate_bv >> i & 1 && slots->run_count < MOST_RUNS)
            note_lines(slots, found->component[i].compact_offset, found->component[i].size);
}

static struct slots *slots_map(size_t count)
{
    struct slots *slots = calloc(1, sizeof *slots);
    if (!slots)
        return NULL;
    slots->stride = image_size();
    slots->count = count;
    if (count > (SIZE_MAX / 4) / slots->stride) {
        free(slots);
        return NULL;
    }
    slots->mapped = slots->stride * count + 2 * HUGE_PAGE;
    slots->memory = mmap(NULL, slots->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (slots->memory == MAP_FAILED) {
        free(slots);
        return NULL;
    }
    slots->first = (char *)(((uintptr_t)slots->memory + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    madvise(slots->first, slots->mapped - HUGE_PAGE, MADV_HUGEPAGE); /* where the kernel will not, small pages serve */
    return slots;
}

/* Make a slot what XSAVEC makes of the image; false with an error set. */
static bool slot_fill(char *slot, const Py_buffer *image)
{
    uint64_t mask = processor()->managed_mask;
    size_t area = (processor()->area_size + LINE - 1) / LINE * LINE;
    char *from = aligned_alloc(LINE, area + 4096); /* a standard-form restore may look past a short image's end */
    if (!from || signals_acquire()) {
        free(from);
        PyErr_NoMemory();
        return false;
    }
    memset(from, 0, area + 4096);
    copy_bytes(from, image);
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    struct refusal refusal = xstate_exchange(from, slot, mask, mask, 1);
    xstate_restore(initial_image(), mask);
    control_words_write(mxcsr, fcw);
    signals_release();
    if (refusal.signal)
        raise_refusal(&refusal, from, area);
    free(from);
    return !refusal.signal;
}

/* Fill the slots with the images by turns; NULL with an error set. */
static struct slots *slots_new(const Py_buffer *images, size_t image_count, size_t count)
{
    struct slots *slots = slots_map(count);
    if (!slots) {
        PyErr_NoMemory();
        return NULL;
    }
    for (size_t i = 0; i < image_count && i < count; i++)
        if (!slot_fill(slots->first + i * slots->stride, &images[i])) {
            slots_free(slots);
            return NULL;
        }
    for (size_t i = image_count; i < count; i++)
        memcpy(slots->first + i * slots->stride, slots->first + i % image_count * slots->stride, slots->stride);
    uint64_t xstate_bv;
    memcpy(&xstate_bv, slots->first + HEADER_AT, sizeof xstate_bv);
    note_used_lines(slots, xstate_bv);
    return slots;
}

/* bench_slots(image, count, other=None) */
static PyObject *core_bench_slots(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer images[2] = {{0}, {0}};
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "y*n|y*:bench_slots", &images[0], &count, &images[1]))
        return NULL;
    size_t limit = processor()->area_size;
    struct slots *slots = NULL;
    if (!processor()->xsavec)
        raise_error("UnsupportedHere", "XSAVEC (CPUID.(0DH,1):EAX[1])");
    else if ((size_t)images[0].len > limit || (size_t)images[1].len > limit)
        raise_error("ImageError", "the image is longer than any that this processor can hold");
    else if (count < 1)
        PyErr_SetString(PyExc_ValueError, "at least one slot");
    else
        slots = slots_new(images, images[1].obj ? 2 : 1, (size_t)count);
    PyBuffer_Release(&images[0]);
    if (images[1].obj)
        PyBuffer_Release(&images[1]);
    PyObject *capsule = slots ? PyCapsule_New(slots, SLOTS, slots_destroy) : NULL;
    if (slots && !capsule)
        slots_free(slots);
    return capsule;
}

static uint64_t read_lines(const struct slots *slots, const uint32_t *order, uint64_t steps)
{
    uint64_t sum = 0;
    for (uint64_t i = 1; i <= steps; i++) {
        const char *slot = slots->first + order[i] * slots->stride;
        for (size_t r = 0; r < slots->run_count; r++) {
            const char *line = slot + (size_t)slots->runs[r].first * LINE;
            for (uint32_t n = slots->runs[r].count; n; n--, line += LINE)
                sum += *(const volatile uint64_t *)line;
        }
    }
    return sum;
}

enum way { WAY_XSAVEC, WAY_FXSAVE, WAY_READ, WAY_COUNT };

static void walk(const struct slots *slots, enum way way, const uint32_t *order, uint64_t steps)
{
    uint64_t mask = processor()->managed_mask;
    if (way == WAY_XSAVEC)
        walk_xsavec(slots->first, slots->stride, order, steps, mask);
    else if (way == WAY_FXSAVE)
        walk_fxsave(slots->first, slots->stride, order, steps, mask);
    else
        read_lines(slots, order, steps);
}

static int64_t walk_timed(const struct slots *slots, enum way way, const uint32_t *order, uint64_t steps)
{
    struct timespec start, end;
    uint64_t mask = processor()->managed_mask;
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    walk(slots, way, order, steps);
    if (way != WAY_READ)
        xstate_restore(initial_image(), mask);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    if (way != WAY_READ)
        control_words_write(mxcsr, fcw);
    return (int64_t)(end.tv_sec - start.tv_sec) * 1000000000 + (end.tv_nsec - start.tv_nsec);
}

static bool order_is_legal(const struct slots *slots, const Py_buffer *order, Py_ssize_t start, Py_ssize_t steps)
{
    if (start < 0 || steps < 0 || order->len % 4 || (uintptr_t)order->buf % 4 || start > order->len / 4 ||
        steps > order->len / 4 - start - 1)
        return false;
    const uint32_t *index = (const uint32_t *)order->buf + start;
    for (Py_ssize_t i = 0; i <= steps; i++)
        if (index[i] >= slots->count)
            return false;
    return true;
}

/* bench_walk(slots, way, order, start, steps) */
static PyObject *core_bench_walk(PyObject *module, PyObject *args)
{
    (void)module;
    static const char *const names[WAY_COUNT] = {"xsavec", "fxsave", "read"};
    PyObject *capsule;
    Py_buffer order;
    Py_ssize_t start, steps;
    const char *name;
    if (!PyArg_ParseTuple(args, "Osy*nn:bench_walk", &capsule, &name, &order, &start, &steps))
        return NULL;
    int way = 0;
    while (way < WAY_COUNT && strcmp(name, names[way]))
        way++;
    const struct slots *slots = PyCapsule_GetPointer(capsule, SLOTS);
    if (slots && (way == WAY_COUNT || !order_is_legal(slots, &order, start, steps)))
        PyErr_SetString(PyExc_ValueError, way == WAY_COUNT ? "a way is xsavec, fxsave or read"
                                                           : "the order leaves the slots, or the steps the order");
    PyObject *result = NULL;
    if (!PyErr_Occurred())
        result = PyLong_FromLongLong(walk_timed(slots, way, (const uint32_t *)order.buf + start, (uint64_t)steps));
    PyBuffer_Release(&order);
    return result;
}

/* bench_size(slots): (stride, lines that the image uses) */
static PyObject *core_bench_size(PyObject *module, PyObject *capsule)
{
    (void)module;
    const struct slots *slots = PyCapsule_GetPointer(capsule, SLOTS);
    if (!slots)
        return NULL;
    Py_ssize_t lines = 0;
    for (size_t i = 0; i < slots->run_count; i++)
        lines += slots->runs[i].count;
    return Py_BuildValue("(nn)", (Py_ssize_t)slots->stride, lines);
}

PyMethodDef bench_methods[] = {
    {"bench_slots", core_bench_slots, METH_VARARGS, NULL},
    {"bench_walk", core_bench_walk, METH_VARARGS, NULL},
    {"bench_size", core_bench_size, METH_O, NULL},
    {0},
};
