/* The Python side of the core: one file per type, all on the Limited API. */
#ifndef FPSTATE_TYPES_H
#define FPSTATE_TYPES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "legal.h"

extern PyType_Spec slab_spec, memory_spec, vcpu_spec, queue_spec, context_spec, order_spec;
extern PyMethodDef ptrace_methods[], bulk_methods[], bench_methods[], bench_context_methods[], switch_methods[], choice_methods[], state_methods[];

struct vcpu *vcpu_of(PyObject *object); /* no check: for objects known to be vCPUs */
bool is_vcpu(PyObject *object);
struct context *context_of(PyObject *object); /* no check: for objects known to be contexts */
bool is_context(PyObject *object);           /* false with TypeError set */
PyObject *context_failed(int error);         /* an errno value of context.h as an exception; NULL */
int remember_context_type(PyObject *type);

/* Get a writable buffer that an image so arranged fits into; false with ValueError or BufferError set. */
bool get_room(PyObject *object, Py_buffer *view, const struct arrangement *arrangement);

/* errors.c: an error of fpstate.errors by name, with one message argument */
void raise_error(const char *name, const char *message);
void *raise_no_carrier(void); /* what errno says of a thread that cannot run guests; returns NULL */
/* ImageError for what XRSTOR would refuse */
void raise_illegal(const struct illegal *what);
PyObject *check_image(PyObject *module, PyObject *image); /* raise that, or return None */
/* RestoreFault for what it refused; ``image`` is what refusal->address is looked up in, at least a header */
void raise_refusal(const struct refusal *refusal, const char *image, size_t size);

/* Copy a buffer's bytes; an empty one may have no address at all, which memcpy may not be given. */
static inline void copy_bytes(void *to, const Py_buffer *from)
{
    if (from->len)
        memcpy(to, from->buf, (size_t)from->len);
}

#endif
