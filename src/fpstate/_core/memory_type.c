/* Memory: a guest's private memory between two guard pages. */
#include "dumps.h"
#include "types.h"

#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096 };

typedef struct {
    PyObject_HEAD
    char *start; /* the guest's first byte, one page into the mapping */
    Py_ssize_t size;
    unsigned char *writable; /* one byte a page: what write() may touch */
} Memory;

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"size", NULL};
    Py_ssize_t size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "n:Memory", names, &size))
        return NULL;
    if (size <= 0 || size % PAGE || size > PY_SSIZE_T_MAX - 2 * PAGE) {
        PyErr_SetString(PyExc_ValueError, "size must be a positive multiple of 4096");
        return NULL;
    }
    Memory *self = (Memory *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    char *mapping = mmap(NULL, (size_t)size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        Py_DECREF(self);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->start = mapping + PAGE;
    self->size = size;
    self->writable = PyMem_Calloc((size_t)(size / PAGE), 1);
    if (!self->writable || !keep_from_dumps(mapping, (size_t)size + 2 * PAGE) ||
        mprotect(self->start, (size_t)size, PROT_READ | PROT_WRITE)) {
        Py_DECREF(self);
        return self->writable ? PyErr_SetFromErrno(PyExc_OSError) : PyErr_NoMemory();
    }
    memset(self->writable, 1, (size_t)(size / PAGE));
    return (PyObject *)self;
}

static void memory_dealloc(PyObject *object)
{
    Memory *self = (Memory *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->start)
        munmap(self->start - PAGE, (size_t)self->size + 2 * PAGE);
    PyMem_Free(self->writable);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static bool inside(const Memory *self, Py_ssize_t offset, Py_ssize_t length)
{
    if (offset >= 0 && length >= 0 && offset <= self->size && length <= self->size - offset)
        return true;
    PyErr_Format(PyExc_ValueError, "%zd bytes at offset %zd lie outside the guest's %zd bytes", length, offset,
                 self->size);
    return false;
}

static bool writable(const Memory *self, Py_ssize_t offset, Py_ssize_t length)
{
    for (Py_ssize_t page = offset / PAGE; length && page <= (offset + length - 1) / PAGE; page++) {
        if (!self->writable[page]) {
            PyErr_Format(PyExc_ValueError, "page %zd of the guest's memory is not writable", page);
            return false;
        }
    }
    return true;
}

static PyObject *memory_write(PyObject *object, PyObject *args)
{
    Memory *self = (Memory *)object;
    Py_ssize_t offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "ny*:write", &offset, &data))
        return NULL;
    bool allowed = inside(self, offset, data.len) && writable(self, offset, data.len);
    if (allowed)
        copy_bytes(self->start + offset, &data);
    PyBuffer_Release(&data);
    if (!allowed)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *memory_read(PyObject *object, PyObject *args)
{
    Memory *self = (Memory *)object;
    Py_ssize_t offset, length;
    if (!PyArg_ParseTuple(args, "nn:read", &offset, &length) || !inside(self, offset, length))
        return NULL;
    return PyBytes_FromStringAndSize(self->start + offset, length);
}

static PyObject *memory_protect(PyObject *object, PyObject *args)
{
    Memory *self = (Memory *)object;
    Py_ssize_t offset, length;
    int writable, executable;
    if (!PyArg_ParseTuple(args, "nnpp:protect", &offset, &length, &writable, &executable) ||
        !inside(self, offset, length))
        return NULL;
    if (offset % PAGE || length % PAGE) {
        PyErr_SetString(PyExc_ValueError, "offset and length must be multiples of 4096");
        return NULL;
    }
    int protection = PROT_READ | (writable ? PROT_WRITE : 0) | (executable ? PROT_EXEC : 0);
    if (length && mprotect(self->start + offset, (size_t)length, protection))
        return PyErr_SetFromErrno(PyExc_OSError);
    memset(self->writable + offset / PAGE, writable, (size_t)(length / PAGE));
    Py_RETURN_NONE;
}

static PyObject *memory_address(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromVoidPtr(((Memory *)object)->start);
}

static PyObject *memory_size(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSsize_t(((Memory *)object)->size);
}

static PyMethodDef memory_methods[] = {
    {"write", memory_write, METH_VARARGS, NULL},
    {"read", memory_read, METH_VARARGS, NULL},
    {"protect", memory_protect, METH_VARARGS, NULL},
    {0},
};
static PyGetSetDef memory_getset[] = {
    {"address", memory_address, NULL, NULL, NULL},
    {"size", memory_size, NULL, NULL, NULL},
    {0},
};
static PyType_Slot memory_slots[] = {
    {Py_tp_new, memory_new},
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_methods, memory_methods},
    {Py_tp_getset, memory_getset},
    {0, NULL},
};
PyType_Spec memory_spec = {"fpstate._core.Memory", sizeof(Memory), 0, Py_TPFLAGS_DEFAULT, memory_slots};
