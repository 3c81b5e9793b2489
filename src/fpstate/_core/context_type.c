/* Context: one register state as a Python object; switch(), and the loops that stay in C. */
#include "types.h"

#include "context.h"
#include "choice.h"
#include "checked_load.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    struct context context;
} Context;

static PyTypeObject *context_type; /* of the module that was loaded last */

struct context *context_of(PyObject *object)
{
    return &((Context *)object)->context;
}

int remember_context_type(PyObject *type)
{
    context_type = (PyTypeObject *)Py_NewRef(type);
    return 0;
}

/* An errno value of context.h as an exception */
PyObject *context_failed(int error)
{
    if (error == ENOTSUP)
        raise_error("UnsupportedHere", core_choice()->reason);
    else if (error == EINVAL)
        raise_error("SettingError", core_choice()->reason);
    else
        raise_error("PoolExhausted", "no memory for a context's state");
    return NULL;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Context", names))
        return NULL;
    Context *self = (Context *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    int error = context_init(&self->context);
    if (error) {
        Py_DECREF(self);
        return context_failed(error);
    }
    return (PyObject *)self;
}

static void context_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    context_destroy(context_of(object));
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* A module that is loaded again, or in another interpreter, has types of its own, and this code too. */
bool is_context(PyObject *object)
{
    if (Py_TYPE(object) == context_type ||
        PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)context_dealloc)
        return true;
    PyErr_SetString(PyExc_TypeError, "a Context is wanted here");
    return false;
}

static PyObject *outcome(int error)
{
    if (error)
        return context_failed(error);
    Py_RETURN_NONE;
}

static PyObject *method_save(PyObject *object, PyObject *none)
{
    (void)none;
    return outcome(context_save(context_of(object)));
}

static PyObject *method_restore(PyObject *object, PyObject *none)
{
    (void)none;
    return outcome(context_restore(context_of(object)));
}

static struct refusal through(const struct private_copy *copy, void *area)
{
    struct refusal refusal;
    image_through_registers(copy->image, area, &refusal);
    return refusal;
}

static PyObject *method_load(PyObject *object, PyObject *argument)
{
    Py_buffer image;
    if (PyObject_GetBuffer(argument, &image, PyBUF_SIMPLE))
        return NULL;
    void *area = PyMem_Malloc(processor()->area_size + 64);
    void *aligned = (void *)(((uintptr_t)area + 63) & ~63ul);
    int error = ENOMEM;
    if (area) {
        memset(aligned, 0, processor()->area_size);
        error = load_checked(&image, through, aligned);
    }
    PyBuffer_Release(&image);
    if (!error)
        error = context_write(context_of(object), aligned);
    if (area)
        explicit_bzero(area, processor()->area_size + 64);
    PyMem_Free(area);
    return error < 0 ? NULL : outcome(error);
}

static PyObject *method_image(PyObject *object, PyObject *none)
{
    (void)none;
    PyObject *image = PyBytes_FromStringAndSize(NULL, processor()->area_size);
    if (image)
        context_read(context_of(object), PyBytes_AsString(image));
    return image;
}

static PyObject *method_park(PyObject *object, PyObject *none)
{
    (void)none;
    size_t before = context_size(context_of(object));
    int error = context_park(context_of(object));
    return error ? context_failed(error) : PyLong_FromSsize_t((Py_ssize_t)(before - context_size(context_of(object))));
}

static PyObject *method_wipe(PyObject *object, PyObject *none)
{
    (void)none;
    context_destroy(context_of(object));
    Py_RETURN_NONE;
}

static PyObject *get_in_use(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(context_of(object)->in_use);
}

static PyObject *get_size(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(context_size(context_of(object)));
}

static PyObject *get_parked(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(context_of(object)->packed != NULL);
}

/* switch(outgoing, incoming, next=None) */
static PyObject *core_switch(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count < 2 || count > 3) {
        PyErr_Format(PyExc_TypeError, "switch() takes two contexts, or three: %zd given", count);
        return NULL;
    }
    if (!is_context(args[0]) || !is_context(args[1]))
        return NULL;
    if (count == 3 && args[2] != Py_None) {
        if (!is_context(args[2]))
            return NULL;
        context_prefetch(context_of(args[2]));
    }
    int error = context_switch(context_of(args[0]), context_of(args[1]));
    if (error)
        return context_failed(error);
    Py_RETURN_NONE;
}

static PyMethodDef context_methods[] = {
    {"load", method_load, METH_O, NULL}, {"image", method_image, METH_NOARGS, NULL},
    {"save", method_save, METH_NOARGS, NULL}, {"restore", method_restore, METH_NOARGS, NULL},
    {"park", method_park, METH_NOARGS, NULL}, {"wipe", method_wipe, METH_NOARGS, NULL},
    {0},
};
static PyGetSetDef context_getset[] = {
    {"in_use", get_in_use, NULL, NULL, NULL},
    {"size", get_size, NULL, NULL, NULL},
    {"parked", get_parked, NULL, NULL, NULL},
    {0},
};
static PyType_Slot context_slots[] = {
    {Py_tp_doc, (void *)"One full register state; switch() goes from one to another."},
    {Py_tp_new, context_new},         {Py_tp_dealloc, context_dealloc}, {Py_tp_methods, context_methods},
    {Py_tp_getset, context_getset},   {0, NULL},
};
PyType_Spec context_spec = {"fpstate._core.Context", sizeof(Context), 0, Py_TPFLAGS_DEFAULT, context_slots};

PyMethodDef switch_methods[] = {
    {"switch", (PyCFunction)(void (*)(void))core_switch, METH_FASTCALL, NULL},
    {0},
};
