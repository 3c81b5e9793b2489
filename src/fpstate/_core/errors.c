/* Errors of fpstate as the core raises them. What a refused restore means is worded in Python, once. */
#include "types.h"

#include <errno.h>
#include <string.h>

static const char REFUSED_RESTORES[] = "fpstate.arch.exception";

static PyObject *attribute_of(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *attribute = module ? PyObject_GetAttrString(module, name) : NULL;
    Py_XDECREF(module);
    return attribute;
}

void raise_error(const char *name, const char *message)
{
    PyObject *type = attribute_of("fpstate.errors", name);
    if (type)
        PyErr_SetString(type, message);
    Py_XDECREF(type);
}

/* Raise what a function that makes errors returned; takes the reference. */
static void raise_made(PyObject *error)
{
    if (error)
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_XDECREF(error);
}

void *raise_no_carrier(void)
{
    int error = errno;
    if (error != EAGAIN) /* which timer_create alone answers */
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *maker = attribute_of("fpstate.errors", "TimerRefused");
    if (maker)
        raise_made(PyObject_CallFunction(maker, "i", error));
    Py_XDECREF(maker);
    return NULL;
}

void raise_illegal(const struct illegal *what)
{
    PyObject *maker = attribute_of(REFUSED_RESTORES, "illegal_image");
    if (maker)
        raise_made(PyObject_CallFunction(maker, "sLKKi", what->why, (long long)what->offset,
                                         (unsigned long long)what->found, (unsigned long long)what->expected,
                                         what->component));
    Py_XDECREF(maker);
}

/* check_image(image): raises what load_state would for it */
PyObject *check_image(PyObject *module, PyObject *object)
{
    (void)module;
    Py_buffer image;
    struct illegal what;
    if (PyObject_GetBuffer(object, &image, PyBUF_SIMPLE))
        return NULL;
    size_t size = (size_t)image.len;
    _Alignas(8) char start[LEGACY_AND_HEADER]; /* what is looked at; a copy, as load_state has it: others may write */
    if (size)
        memcpy(start, image.buf, size < sizeof start ? size : sizeof start);
    PyBuffer_Release(&image);
    bool illegal = image_illegal(start, size, &what);
    explicit_bzero(start, sizeof start);
    if (!illegal)
        Py_RETURN_NONE;
    raise_illegal(&what);
    return NULL;
}

void raise_refusal(const struct refusal *refusal, const char *image, size_t size)
{
    struct illegal what;
    uint64_t header[2];
    bool known = image_illegal(image, size, &what);
    memcpy(header, image + HEADER_AT, sizeof header);
    PyObject *maker = attribute_of(REFUSED_RESTORES, "restore_fault");
    if (maker)
        raise_made(PyObject_CallFunction(maker, "iiLKKsL", refusal->signal, refusal->code,
                                         (long long)(refusal->address - (uint64_t)image), (unsigned long long)header[0],
                                         (unsigned long long)header[1], known ? what.why : "",
                                         known ? (long long)what.offset : -1LL));
    Py_XDECREF(maker);
}
