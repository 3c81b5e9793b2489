/* ptrace_snapshot and ptrace_edit: the extended state of other processes' threads, for Python. */
#include "types.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tracer.h"

static bool set_limits(struct tracing *tracing, Py_ssize_t capacity, long long limit_ns)
{
    tracing->capacity = (size_t)capacity;
    tracing->limit_ns = limit_ns;
    if (tracing->pid > 0 && capacity > 0 && capacity % 8 == 0 && limit_ns >= 0)
        return true;
    PyErr_SetString(PyExc_ValueError, "needs a process, a size that is a multiple of 8, and a time");
    return false;
}

static int run_without_gil(struct tracing *tracing)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = tracing_run(tracing);
    Py_END_ALLOW_THREADS
    return error ? error : tracing->error;
}

static PyObject *error_from(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* (tid, image or None, errno, name) of each thread that has not ended */
static PyObject *outcomes(const struct tracing *tracing)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < tracing->count; i++) {
        const struct tracee *tracee = &tracing->tracees[i];
        if (tracee->state == TRACEE_ENDED)
            continue;
        PyObject *row =
            tracee->state == TRACEE_STOPPED
                ? Py_BuildValue("(iy#iy)", tracee->tid, tracee->image, (Py_ssize_t)tracee->length, 0, tracee->name)
                : Py_BuildValue("(iOiy)", tracee->tid, Py_None, tracee->error, tracee->name);
        if (!row || PyList_Append(list, row))
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *ptrace_snapshot(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t capacity;
    long long limit_ns;
    struct tracing tracing = {0};
    if (!PyArg_ParseTuple(args, "inL:ptrace_snapshot", &tracing.pid, &capacity, &limit_ns))
        return NULL;
    if (!set_limits(&tracing, capacity, limit_ns))
        return NULL;
    int error = run_without_gil(&tracing);
    PyObject *rows = error ? error_from(error) : outcomes(&tracing);
    tracing_deinit(&tracing);
    return rows ? Py_BuildValue("(NLL)", rows, (long long)tracing.stop_ns, (long long)tracing.longest_ns) : NULL;
}

/* What the callback has of Python; what it raised is raised after the thread was let go. */
struct edit {
    PyObject *function;
    PyObject *before;
    PyObject *type, *value, *traceback;
};

static bool call_edit(struct tracing *tracing, struct tracee *tracee)
{
    struct edit *edit = tracing->edit_data;
    bool write = false;
    PyGILState_STATE gil = PyGILState_Ensure();
    edit->before = PyBytes_FromStringAndSize((char *)tracee->image, (Py_ssize_t)tracee->length);
    PyObject *answer = edit->before ? PyObject_CallFunctionObjArgs(edit->function, edit->before, NULL) : NULL;
    char *bytes;
    Py_ssize_t length;
    if (answer && answer != Py_None && PyBytes_AsStringAndSize(answer, &bytes, &length) == 0) {
        write = (size_t)length == tracee->length;
        if (write)
            memcpy(tracee->image, bytes, tracee->length);
        else
            PyErr_Format(PyExc_ValueError, "an image of %zd bytes for one of %zu", length, tracee->length);
    }
    Py_XDECREF(answer);
    PyErr_Fetch(&edit->type, &edit->value, &edit->traceback);
    PyGILState_Release(gil);
    return write;
}

static PyObject *edit_result(const struct tracing *tracing, struct edit *edit)
{
    const struct tracee *tracee = tracing->tracees;
    if (edit->type) {
        PyErr_Restore(edit->type, edit->value, edit->traceback); /* which takes the references */
        edit->type = edit->value = edit->traceback = NULL;
        return NULL;
    }
    if (tracee->state == TRACEE_ENDED || tracee->error)
        return error_from(tracee->state == TRACEE_ENDED ? ESRCH : tracee->error);
    if (!tracing->written)
        return Py_BuildValue("(OOL)", edit->before, Py_None, (long long)tracing->stop_ns);
    return Py_BuildValue("(Oy#L)", edit->before, tracing->after, (Py_ssize_t)tracing->after_length,
                         (long long)tracing->stop_ns);
}

static PyObject *ptrace_edit(PyObject *module, PyObject *args)
{
    (void)module;
    Py_ssize_t capacity;
    long long limit_ns;
    struct edit edit = {0};
    struct tracing tracing = {.only_one = true, .edit = call_edit, .edit_data = &edit};
    if (!PyArg_ParseTuple(args, "inLO:ptrace_edit", &tracing.pid, &capacity, &limit_ns, &edit.function))
        return NULL;
    if (!set_limits(&tracing, capacity, limit_ns))
        return NULL;
    tracing.after = calloc(1, tracing.capacity);
    int error = tracing.after ? run_without_gil(&tracing) : ENOMEM;
    PyObject *result = error || !tracing.count ? error_from(error ? error : ESRCH) : edit_result(&tracing, &edit);
    Py_XDECREF(edit.before);
    Py_XDECREF(edit.type);
    Py_XDECREF(edit.value);
    Py_XDECREF(edit.traceback);
    tracing_deinit(&tracing);
    return result;
}

PyMethodDef ptrace_methods[] = {
    {"ptrace_snapshot", ptrace_snapshot, METH_VARARGS, NULL},
    {"ptrace_edit", ptrace_edit, METH_VARARGS, NULL},
    {0},
};
