/* A C extension module over fpstate's capsule: isolated(callable) calls it in a register state of its own.
 *
 *   gcc -std=c11 -O2 -Wall -Wextra -shared -fPIC -I"$(fpstate include)" \
 *       -isystem "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" isolated.c -o isolated.so
 *
 * The callable starts with MXCSR 1F80H and FCW 37FH, and what it does to rounding, flags and masks ends with it. */
#define FPSTATE_WITH_PYTHON
#include "fpstate.h"

#include <stdlib.h>

static const fpstate_api *api;

/* Storage of our own: then no switch can fail. */
static int two_contexts(fpstate_context **mine, fpstate_context **its, char **storage)
{
    size_t size = api->context_size();
    *storage = (char *)aligned_alloc(api->context_alignment(), 2 * size);
    if (!*storage)
        return -1;
    if (api->create_in(*storage, size, mine) || api->create_in(*storage + size, size, its)) {
        free(*storage);
        return -1;
    }
    return 0;
}

static PyObject *isolated(PyObject *module, PyObject *callable)
{
    (void)module;
    char *storage;
    fpstate_context *mine, *its;
    if (two_contexts(&mine, &its, &storage))
        return PyErr_Format(PyExc_RuntimeError, "no context: %s", api->core_reason());
    api->switch_state(mine, its);
    PyObject *result = PyObject_CallNoArgs(callable);
    api->switch_state(its, mine);
    api->destroy(mine);
    api->destroy(its);
    free(storage);
    return result;
}

static PyObject *core(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyUnicode_FromString(api->core() ? api->core() : "none");
}

static PyMethodDef methods[] = {
    {"isolated", isolated, METH_O, "Call it in an initial register state; the caller's comes back."},
    {"core", core, METH_NOARGS, "The name of the core that switches."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "isolated", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit_isolated(void)
{
    api = fpstate_import();
    return api ? PyModule_Create(&definition) : NULL;
}
