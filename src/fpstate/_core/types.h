/* The Python side of the core: one file per type, all on the Limited API. */
#ifndef FPSTATE_TYPES_H
#define FPSTATE_TYPES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

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

/* an error of fpstate.errors by name, with one message argument */
void raise_error(const char *name, const char *message);

#endif
