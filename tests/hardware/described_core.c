/* The core's checks and slabs on a processor, and under a kernel, that a test describes. */
#include "types.h"

static struct processor described;
static bool kernel_answers;
static uint64_t permitted;
static unsigned asked;

const struct processor *processor(void)
{
    return &described;
}

bool kernel_permission(uint64_t *mask)
{
    asked++;
    if (kernel_answers)
        *mask = permitted;
    return kernel_answers;
}

/* describe(xcr0, dynamic, area_size, mxcsr_mask, [(component, size, offset, aligned)]) */
static PyObject *describe(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long xcr0, dynamic;
    PyObject *components;
    described = (struct processor){.xsavec = true, .xgetbv1 = true};
    if (!PyArg_ParseTuple(args, "KKIIO!", &xcr0, &dynamic, &described.area_size, &described.mxcsr_mask, &PyList_Type,
                          &components))
        return NULL;
    described.xcr0 = xcr0;
    described.managed_mask = xcr0 & ~(1ull << PKRU_BIT);
    described.dynamic_mask = dynamic;
    for (Py_ssize_t i = 0; i < PyList_Size(components); i++) {
        unsigned number, size, offset;
        int aligned;
        if (!PyArg_ParseTuple(PyList_GetItem(components, i), "IIIp", &number, &size, &offset, &aligned))
            return NULL;
        described.component[number].size = size;
        described.component[number].offset = offset;
        described.component[number].aligned = aligned;
    }
    Py_RETURN_NONE;
}

/* permit(mask or None): what the kernel answers from now on; returns how often it was asked before */
static PyObject *permit(PyObject *module, PyObject *mask)
{
    (void)module;
    unsigned before = asked;
    asked = 0;
    kernel_answers = mask != Py_None;
    permitted = kernel_answers ? PyLong_AsUnsignedLongLong(mask) : 0;
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(before);
}

static PyMethodDef methods[] = {
    {"describe", describe, METH_VARARGS, NULL},
    {"permit", permit, METH_O, NULL},
    {"check_image", check_image, METH_O, NULL},
    {0},
};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "described_core", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_described_core(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module ? PyType_FromSpec(&slab_spec) : NULL;
    if (!type || PyModule_AddObjectRef(module, "Slab", type))
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
