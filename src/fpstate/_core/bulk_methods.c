/* The Python side of bulk.c: classify() and gather(). */
#include "bulk.h"
#include "types.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CACHE_DEFAULT = 8 << 20 };

/* An empty buffer may have any address, aligned or not, or none: nothing below reads through it. */

/* Whether count images of extent bytes, the last one without what follows it, lie in length bytes. */
static bool fits(size_t length, size_t stride, size_t count, size_t extent)
{
    if (!count)
        return true;
    return stride >= extent && length >= extent && (count - 1) <= (length - extent) / stride;
}

static PyObject *core_classify(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer source;
    Py_ssize_t stride, count;
    unsigned long long xcomp_bv, allowed, key_mask;
    int carries;
    if (!PyArg_ParseTuple(args, "y*nnKKKp:classify", &source, &stride, &count, &xcomp_bv, &allowed, &key_mask, &carries))
        return NULL;
    if (stride < 0 || count < 0 || !fits((size_t)source.len, (size_t)stride, (size_t)count, LEGACY_AND_HEADER)) {
        PyBuffer_Release(&source);
        PyErr_SetString(PyExc_ValueError, "the images reach beyond the buffer");
        return NULL;
    }
    struct plan *plan = plan_new(BULK_CLASSES);
    if (!plan) {
        PyBuffer_Release(&source);
        return PyErr_NoMemory();
    }
    struct bulk bulk = {source.buf, (size_t)stride, (size_t)count, xcomp_bv, allowed, key_mask, carries};
    Py_ssize_t bad;
    Py_BEGIN_ALLOW_THREADS
    bad = bulk_count(&bulk, plan);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&source);
    PyObject *found = bad == BULK_TOO_MANY ? NULL : PyList_New((Py_ssize_t)plan->count);
    if (bad == BULK_TOO_MANY)
        raise_error("ImageError", "the images are of more than 4096 classes: pass them in parts");
    for (size_t i = 0; found && i < plan->count; i++) {
        const struct class *class = &plan->classes[i];
        PyObject *pair = Py_BuildValue("(Kn)", (unsigned long long)class->key, (Py_ssize_t)class->limit);
        if (!pair || PyList_SetItem(found, (Py_ssize_t)i, pair))
            Py_CLEAR(found);
    }
    plan_free(plan);
    return found ? Py_BuildValue("(Nn)", found, bad) : NULL;
}

static bool read_moves(struct class *class, PyObject *moves, size_t extent, size_t length)
{
    Py_ssize_t count = PyList_Size(moves);
    if (count < 0 || !(class->pieces = calloc(3 * (size_t)count + 1, sizeof *class->pieces)))
        return false;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t from, to, size;
        PyObject *move = Py_XNewRef(PyList_GetItem(moves, i)); /* an argument's __index__ may empty the list */
        bool parsed = move && PyTuple_Check(move) &&
                      PyArg_ParseTuple(move, "nnn;a move is (from, to, size)", &from, &to, &size);
        Py_XDECREF(move);
        if (!parsed) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "a move is a tuple (from, to, size)");
            return false;
        }
        if (from < 0 || to < 0 || size <= 0 || (size_t)size > extent || (size_t)from > extent - (size_t)size ||
            (size_t)size > length || (size_t)to > length - (size_t)size) {
            PyErr_SetString(PyExc_ValueError, "a move leaves the image or the record");
            return false;
        }
        class_append(class, (uint32_t)from, (uint32_t)to, (uint32_t)size);
    }
    return !class_finish(class);
}

/* a class is (key, start, step, limit, record, moves) */
static bool read_class(struct plan *plan, PyObject *item, size_t extent, const Py_buffer *to, bool stream)
{
    unsigned long long key;
    Py_ssize_t start, step, limit, length;
    char *record;
    PyObject *moves;
    if (!item)
        return false;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a class is a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(item, "Knnny#O!;a class is (key, start, step, limit, record, moves)", &key, &start, &step,
                          &limit, &record, &length, &PyList_Type, &moves))
        return false;
    if (plan_find(plan, key) || start < 0 || limit < 0 || step <= 0 || length <= 0 || length > BULK_LONGEST ||
        (limit && (start > to->len || !fits((size_t)(to->len - start), (size_t)step, (size_t)limit, (size_t)length)))) {
        PyErr_SetString(PyExc_ValueError, "a class occurs twice, or its records reach beyond the destination");
        return false;
    }
    size_t first = plan->count ? plan->classes[plan->count - 1].first + plan->classes[plan->count - 1].limit : 0;
    struct class *class = plan_add(plan, key);
    size_t lines = ((size_t)length + BULK_LINE - 1) & ~(size_t)(BULK_LINE - 1);
    class->start = (size_t)start;
    class->step = (size_t)step;
    class->limit = (size_t)limit;
    class->first = first;
    class->size = (size_t)length;
    if (!(class->record = aligned_alloc(BULK_LINE, lines))) {
        PyErr_NoMemory();
        return false;
    }
    memset(class->record, 0, lines);
    memcpy(class->record, record, (size_t)length);
    class->stream = stream && ((uintptr_t)to->buf + (size_t)start) % BULK_LINE == 0 && step % BULK_LINE == 0 &&
                    fits((size_t)(to->len - start), (size_t)step, (size_t)limit, lines);
    if (class->stream)
        class->size = lines;
    class->unit_count = class->size / BULK_UNIT;
    if (!(class->units = calloc(class->unit_count + 1, sizeof *class->units))) {
        PyErr_NoMemory();
        return false;
    }
    for (size_t unit = 0; unit < class->unit_count; unit++)
        class->units[unit] = (uint32_t)(2 * unit * BULK_UNIT + BULK_OF_RECORD);
    return read_moves(class, moves, extent, (size_t)length);
}

/* Streaming pays once the caches could not keep what is written. */
static bool beyond_the_caches(size_t bytes)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > (size_t)(cache > 0 ? cache : CACHE_DEFAULT) / 2;
}

static bool overlap(const Py_buffer *a, const Py_buffer *b)
{
    return a->len && b->len && (char *)a->buf < (char *)b->buf + b->len && (char *)b->buf < (char *)a->buf + a->len;
}

static struct plan *read_plan(PyObject *classes, size_t extent, const Py_buffer *to, bool stream)
{
    Py_ssize_t count = PyList_Size(classes);
    if (count < 0)
        return NULL;
    if (count > BULK_CLASSES) {
        PyErr_SetString(PyExc_ValueError, "more than 4096 classes");
        return NULL;
    }
    struct plan *plan = plan_new((size_t)count);
    if (!plan)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; plan && i < count; i++) {
        PyObject *item = Py_XNewRef(PyList_GetItem(classes, i)); /* likewise */
        bool read = read_class(plan, item, extent, to, stream);
        Py_XDECREF(item);
        if (!read) {
            if (!PyErr_Occurred())
                PyErr_NoMemory();
            plan_free(plan);
            plan = NULL;
        }
    }
    return plan;
}

static PyObject *gather(const Py_buffer *source, Py_buffer *to, Py_buffer *indices, struct bulk *bulk, size_t extent,
                        PyObject *classes, bool in_order, int stream)
{
    if (!fits((size_t)source->len, bulk->stride, bulk->count, extent) || extent < LEGACY_AND_HEADER ||
        extent > BULK_LONGEST) {
        PyErr_SetString(PyExc_ValueError, "the images reach beyond the buffer");
        return NULL;
    }
    if (overlap(source, to) || overlap(indices, to) || overlap(indices, source)) {
        PyErr_SetString(PyExc_ValueError, "source and destination overlap");
        return NULL;
    }
    /* Where there are no images there is nothing to list, and an empty buffer may lie anywhere. */
    bool lists = indices->obj && bulk->count;
    if (lists && ((size_t)indices->len / sizeof(uint32_t) < bulk->count || bulk->count > UINT32_MAX ||
                  (uintptr_t)indices->buf % sizeof(uint32_t))) {
        PyErr_SetString(PyExc_ValueError, "indices needs four aligned bytes for each image");
        return NULL;
    }
    bool beyond = stream < 0 ? beyond_the_caches((size_t)to->len) : stream > 0;
    struct plan *plan = read_plan(classes, extent, to, beyond);
    if (!plan)
        return NULL;
    size_t listed = plan->count ? plan->classes[plan->count - 1].first + plan->classes[plan->count - 1].limit : 0;
    if (indices->obj && listed > bulk->count) {
        plan_free(plan);
        PyErr_SetString(PyExc_ValueError, "the classes have more records than there are images");
        return NULL;
    }
    Py_ssize_t failed;
    Py_BEGIN_ALLOW_THREADS
    failed = bulk_move(bulk, plan, to->buf, in_order, lists ? indices->buf : NULL);
    Py_END_ALLOW_THREADS
    plan_free(plan);
    return PyLong_FromSsize_t(failed);
}

static PyObject *core_gather(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"source",  "stride",   "count",       "xcomp_bv", "allowed", "key_mask", "avx_carries_mxcsr",
                            "extent", "classes", "destination", "in_order", "indices", "stream", NULL};
    Py_buffer source, to, indices = {0};
    Py_ssize_t stride, count, extent;
    unsigned long long xcomp_bv, allowed, key_mask;
    int carries, in_order, stream = -1;
    PyObject *classes, *list = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*nnKKKpnO!w*p|Oi:gather", names, &source, &stride, &count,
                                     &xcomp_bv, &allowed, &key_mask, &carries, &extent, &PyList_Type, &classes, &to,
                                     &in_order, &list, &stream))
        return NULL;
    PyObject *result = NULL;
    if (stride < 0 || count < 0 || extent < 0)
        PyErr_SetString(PyExc_ValueError, "stride, count and extent cannot be negative");
    else if (list == Py_None || !PyObject_GetBuffer(list, &indices, PyBUF_WRITABLE)) {
        struct bulk bulk = {source.buf, (size_t)stride, (size_t)count, xcomp_bv, allowed, key_mask, carries};
        result = gather(&source, &to, &indices, &bulk, (size_t)extent, classes, in_order, stream);
    }
    if (indices.obj)
        PyBuffer_Release(&indices);
    PyBuffer_Release(&source);
    PyBuffer_Release(&to);
    return result;
}

PyMethodDef bulk_methods[] = {
    {"classify", core_classify, METH_VARARGS, NULL},
    {"gather", (PyCFunction)(void (*)(void))core_gather, METH_VARARGS | METH_KEYWORDS, NULL},
    {0},
};
