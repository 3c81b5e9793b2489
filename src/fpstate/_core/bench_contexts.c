/* Measurements of contexts: filled with an image, and switched in loops that stay in C. */
#include "types.h"

#include "bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 64, BEHIND_AN_IMAGE = 4096 };

static const char RING[] = "fpstate._core.bench_ring";

struct ring {
    PyObject *contexts; /* a tuple: they live as long as this */
    size_t count;
    struct context *members[]; /* in the order of their turns, and the first ones again behind the last */
};

static void ring_destroy(PyObject *capsule)
{
    struct ring *ring = PyCapsule_GetPointer(capsule, RING);
    Py_DECREF(ring->contexts);
    free(ring);
}

/* bench_ring(contexts) */
static PyObject *core_bench_ring(PyObject *module, PyObject *contexts)
{
    (void)module;
    Py_ssize_t count = PyList_Check(contexts) ? PyList_Size(contexts) : 0;
    if (count < 1) {
        PyErr_SetString(PyExc_TypeError, "a list of contexts is wanted here");
        return NULL;
    }
    struct ring *ring = malloc(sizeof *ring + ((size_t)count + LOOKAHEAD) * sizeof *ring->members);
    if (!ring)
        return PyErr_NoMemory();
    ring->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count + LOOKAHEAD; i++) {
        PyObject *member = PyList_GetItem(contexts, i % count);
        if (!is_context(member)) {
            free(ring);
            return NULL;
        }
        ring->members[i] = context_of(member);
    }
    ring->contexts = PyList_AsTuple(contexts);
    PyObject *capsule = ring->contexts ? PyCapsule_New(ring, RING, ring_destroy) : NULL;
    if (!capsule) {
        Py_XDECREF(ring->contexts);
        free(ring);
    }
    return capsule;
}

static PyObject *raise_outcome(int error)
{
    if (error)
        raise_error("PoolExhausted", "no memory for a context's state");
    return NULL;
}

static void fill_all(const struct ring *ring, const Py_buffer *image, size_t first, size_t step)
{
    size_t area = (processor()->area_size + LINE - 1) / LINE * LINE + BEHIND_AN_IMAGE;
    char *from = aligned_alloc(LINE, area);
    if (!from || signals_acquire()) {
        free(from);
        raise_outcome(ENOMEM);
        return;
    }
    memset(from, 0, area);
    copy_bytes(from, image);
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    int error = 0;
    struct refusal refusal = {0};
    for (size_t i = first; i < ring->count && !error; i += step)
        error = loop_fill(ring->members[i], from, &refusal);
    xstate_restore(initial_image(), processor()->managed_mask);
    control_words_write(mxcsr, fcw);
    signals_release();
    if (error == -1)
        raise_refusal(&refusal, from, area);
    else
        raise_outcome(error);
    free(from);
}

/* bench_fill(ring, image, first=0, step=1) */
static PyObject *core_bench_fill(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *capsule;
    Py_buffer image;
    Py_ssize_t first = 0, step = 1;
    if (!PyArg_ParseTuple(args, "Oy*|nn:bench_fill", &capsule, &image, &first, &step))
        return NULL;
    const struct ring *ring = PyCapsule_GetPointer(capsule, RING);
    if (ring && (first < 0 || step < 1))
        PyErr_SetString(PyExc_ValueError, "first cannot be negative, step must be positive");
    else if (ring && (size_t)image.len > processor()->area_size)
        raise_error("ImageError", "the image is longer than any that this processor can hold");
    else if (ring)
        fill_all(ring, &image, (size_t)first, (size_t)step);
    PyBuffer_Release(&image);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static int64_t between(const struct timespec *start, const struct timespec *end)
{
    return (int64_t)(end->tv_sec - start->tv_sec) * 1000000000 + (end->tv_nsec - start->tv_nsec);
}

static int run_timed(const struct ring *ring, enum loop_way way, size_t at, uint64_t steps, int64_t *ns)
{
    struct timespec start, end;
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    int error = context_unpark(ring->members[at]);
    if (error)
        return error;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    error = loop_run(ring->members, ring->count, way, at, steps);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    control_words_write(mxcsr, fcw);
    *ns = between(&start, &end);
    return error;
}

/* bench_switches(ring, way, start, steps) */
static PyObject *core_bench_switches(PyObject *module, PyObject *args)
{
    (void)module;
    static const char *const names[WAY_COUNT] = {"switch", "next", "rotate", "rotate next"};
    PyObject *capsule;
    const char *name;
    Py_ssize_t start, steps;
    if (!PyArg_ParseTuple(args, "Osnn:bench_switches", &capsule, &name, &start, &steps))
        return NULL;
    int way = WAY_SWITCH;
    while (way < WAY_COUNT && strcmp(name, names[way]))
        way++;
    const struct ring *ring = PyCapsule_GetPointer(capsule, RING);
    if (!ring)
        return NULL;
    if (way == WAY_COUNT || start < 0 || steps < 0 || (size_t)start >= ring->count) {
        PyErr_SetString(PyExc_ValueError, "a way is switch, next, rotate or rotate next, and the start in the ring");
        return NULL;
    }
    int64_t ns = 0;
    raise_outcome(run_timed(ring, way, (size_t)start, (uint64_t)steps, &ns));
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(ns);
}

/* bench_control(switches) */
static PyObject *core_bench_control(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long steps;
    if (!PyArg_ParseTuple(args, "K:bench_control", &steps))
        return NULL;
    struct control one = {mxcsr_read(), fcw_read()}, other = one;
    struct timespec start, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
    loop_control(&one, &other, steps);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return PyLong_FromLongLong(between(&start, &end));
}

PyMethodDef bench_context_methods[] = {
    {"bench_ring", core_bench_ring, METH_O, NULL},
    {"bench_fill", core_bench_fill, METH_VARARGS, NULL},
    {"bench_switches", core_bench_switches, METH_VARARGS, NULL},
    {"bench_control", core_bench_control, METH_VARARGS, NULL},
    {0},
};
