/* Slab: equal, 64-byte-aligned buffers in one mapping. A slot that is given back is zeroed first. */
#include "dumps.h"
#include "types.h"

#include <sys/mman.h>

enum { ALIGNMENT = 64, PAGE = 4096, HUGE_PAGE = 2 << 20 };

typedef struct {
    PyObject_HEAD
    char *memory;
    Py_ssize_t mapped, stride, count, taken;
    unsigned char *in_use; /* one byte a slot */
    Py_ssize_t *free_slots;
    Py_ssize_t free_count;
} Slab;

/* Large slabs start on a huge page's boundary, and have huge pages where the kernel gives them. */
static char *map_slots(size_t size)
{
    size_t slack = size >= HUGE_PAGE ? HUGE_PAGE - PAGE : 0;
    char *start = mmap(NULL, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    if (!keep_from_dumps(start, size + slack)) {
        munmap(start, size + slack);
        return NULL;
    }
    if (!slack)
        return start;
    char *aligned = (char *)(((uintptr_t)start + slack) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (aligned > start)
        munmap(start, (size_t)(aligned - start));
    if (aligned - start < (ptrdiff_t)slack)
        munmap(aligned + size, slack - (size_t)(aligned - start));
    madvise(aligned, size, MADV_HUGEPAGE);
    return aligned;
}

static PyObject *slab_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stride", "count", NULL};
    Py_ssize_t stride, count;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nn:Slab", names, &stride, &count))
        return NULL;
    if (stride <= 0 || stride % ALIGNMENT || count <= 0 || count > (PY_SSIZE_T_MAX - HUGE_PAGE) / stride - 1) {
        PyErr_SetString(PyExc_ValueError, "stride must be a positive multiple of 64 and count positive");
        return NULL;
    }
    Slab *self = (Slab *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    /* A restore in the standard format reads up to the last byte of all that it asks for, wherever a short image ends. */
    Py_ssize_t tail = processor()->area_size;
    self->mapped = (stride * count + tail + PAGE - 1) / PAGE * PAGE;
    self->stride = stride;
    self->count = count;
    self->memory = map_slots((size_t)self->mapped);
    self->in_use = PyMem_Calloc((size_t)count, 1);
    self->free_slots = PyMem_Calloc((size_t)count, sizeof *self->free_slots);
    if (!self->memory || !self->in_use || !self->free_slots) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++)
        self->free_slots[i] = count - 1 - i;
    self->free_count = count;
    return (PyObject *)self;
}

static void slab_dealloc(PyObject *object)
{
    Slab *self = (Slab *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->memory) {
        explicit_bzero(self->memory, (size_t)self->mapped);
        munmap(self->memory, (size_t)self->mapped);
    }
    PyMem_Free(self->in_use);
    PyMem_Free(self->free_slots);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *slab_take(PyObject *object, PyObject *none)
{
    (void)none;
    Slab *self = (Slab *)object;
    if (self->free_count == 0) {
        raise_error("PoolExhausted", "every slot of the slab is taken");
        return NULL;
    }
    Py_ssize_t slot = self->free_slots[--self->free_count];
    self->in_use[slot] = 1;
    self->taken++;
    return PyLong_FromSsize_t(slot);
}

static PyObject *slab_give(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"slot", "scrub", NULL};
    Slab *self = (Slab *)object;
    Py_ssize_t slot;
    int scrub = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n|p:give", names, &slot, &scrub))
        return NULL;
    if (slot < 0 || slot >= self->count || !self->in_use[slot]) {
        raise_error("VsoError", "this slot is not taken: given back twice, or never taken");
        return NULL;
    }
    if (scrub)
        explicit_bzero(self->memory + slot * self->stride, (size_t)self->stride);
    self->in_use[slot] = 0;
    self->free_slots[self->free_count++] = slot;
    self->taken--;
    Py_RETURN_NONE;
}

static PyObject *slab_is_taken(PyObject *object, PyObject *argument)
{
    Slab *self = (Slab *)object;
    Py_ssize_t slot = PyLong_AsSsize_t(argument);
    if (slot == -1 && PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(slot >= 0 && slot < self->count && self->in_use[slot]);
}

static int slab_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    Slab *self = (Slab *)object;
    return PyBuffer_FillInfo(view, object, self->memory, self->stride * self->count, 0, flags);
}

static PyObject *slab_address(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromVoidPtr(((Slab *)object)->memory);
}

static PyObject *slab_size(PyObject *object, void *which)
{
    return PyLong_FromSsize_t(*(Py_ssize_t *)((char *)object + (size_t)which));
}

static PyMethodDef slab_methods[] = {
    {"take", slab_take, METH_NOARGS, NULL},
    {"give", (PyCFunction)(void (*)(void))slab_give, METH_VARARGS | METH_KEYWORDS, NULL},
    {"is_taken", slab_is_taken, METH_O, NULL},
    {0},
};
static PyGetSetDef slab_getset[] = {
    {"address", slab_address, NULL, NULL, NULL},
    {"stride", slab_size, NULL, NULL, (void *)offsetof(Slab, stride)},
    {"count", slab_size, NULL, NULL, (void *)offsetof(Slab, count)},
    {"mapped", slab_size, NULL, NULL, (void *)offsetof(Slab, mapped)},
    {"taken", slab_size, NULL, NULL, (void *)offsetof(Slab, taken)},
    {0},
};
static PyType_Slot slab_slots[] = {
    {Py_tp_new, slab_new},          {Py_tp_dealloc, slab_dealloc},        {Py_tp_methods, slab_methods},
    {Py_tp_getset, slab_getset},    {Py_bf_getbuffer, slab_getbuffer},    {0, NULL},
};
PyType_Spec slab_spec = {"fpstate._core.Slab", sizeof(Slab), 0, Py_TPFLAGS_DEFAULT, slab_slots};
