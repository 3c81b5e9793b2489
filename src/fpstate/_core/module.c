/* The module: processor facts, the guarded exchange, the spill area, and the types. */
#include "dumps.h"
#include "types.h"

#include "c_api.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static PyObject *core_cpuid(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned leaf, subleaf = 0;
    uint32_t out[4];
    if (!PyArg_ParseTuple(args, "I|I:cpuid", &leaf, &subleaf))
        return NULL;
    cpuid(leaf, subleaf, out);
    return Py_BuildValue("(IIII)", out[0], out[1], out[2], out[3]);
}

static PyObject *core_xgetbv(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned index;
    if (!PyArg_ParseTuple(args, "I:xgetbv", &index))
        return NULL;
    if (!processor()->xcr0 || index > 1 || (index == 1 && !processor()->xgetbv1)) {
        raise_error("UnsupportedHere", index == 1 ? "XGETBV with ECX=1 (CPUID.(0DH,1):EAX[2])"
                                                  : "XGETBV (CPUID.1:ECX[27], OSXSAVE; ECX is 0 or 1)");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(xgetbv(index));
}

static PyObject *core_mxcsr_mask(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyLong_FromUnsignedLong(processor()->mxcsr_mask);
}

static PyObject *core_features(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    const struct processor *found = processor();
    uint64_t permitted;
    PyObject *permission =
        kernel_permission(&permitted) ? PyLong_FromUnsignedLongLong(permitted) : Py_NewRef(Py_None);
    if (!permission)
        return NULL;
    return Py_BuildValue("{sKsKsKsNsIsOsOsOsO}", "xcr0", (unsigned long long)found->xcr0,
                         "managed_mask", (unsigned long long)found->managed_mask,
                         "dynamic_mask", (unsigned long long)found->dynamic_mask,
                         "permission", permission,
                         "area_size", found->area_size,
                         "xsavec", found->xsavec ? Py_True : Py_False,
                         "xgetbv1", found->xgetbv1 ? Py_True : Py_False,
                         "pkru", found->pkru ? Py_True : Py_False,
                         "fsgsbase", found->fsgsbase ? Py_True : Py_False);
}

static PyObject *core_tsc_hz(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyLong_FromUnsignedLongLong(tsc_hz());
}

/* Two 64-byte-aligned areas of the processor's largest image, with a page behind them. */
static char *scratch(size_t *area)
{
    *area = (processor()->area_size + 4095) & ~4095ul;
    char *memory = mmap(NULL, 2 * *area + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (keep_from_dumps(memory, 2 * *area + 4096))
        return memory;
    munmap(memory, 2 * *area + 4096);
    return NULL;
}

static void release_scratch(char *memory, size_t area)
{
    explicit_bzero(memory, 2 * area);
    munmap(memory, 2 * area + 4096);
}

static PyObject *core_exchange(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"image", "mask", "compact", NULL};
    Py_buffer image;
    unsigned long long mask;
    int compact = 0;
    size_t area;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*K|p:exchange", names, &image, &mask, &compact))
        return NULL;
    const struct processor *found = processor();
    if (!found->xcr0 || (compact && !found->xsavec)) {
        PyBuffer_Release(&image);
        raise_error("UnsupportedHere", compact ? "XSAVEC" : "XSAVE");
        return NULL;
    }
    char *from = scratch(&area);
    if (!from || (size_t)image.len > area || signals_acquire()) {
        bool too_long = from && (size_t)image.len > area;
        if (from)
            release_scratch(from, area);
        PyBuffer_Release(&image);
        if (too_long)
            raise_error("ImageError", "the image is longer than any that this processor can hold");
        return too_long ? NULL : PyErr_NoMemory();
    }
    copy_bytes(from, &image);
    PyBuffer_Release(&image);
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    struct refusal refusal = xstate_exchange(from, from + area, mask & found->managed_mask, mask & found->managed_mask, compact);
    xstate_restore(initial_image(), found->managed_mask);
    control_words_write(mxcsr, fcw);
    signals_release();
    PyObject *result = NULL;
    if (refusal.signal)
        raise_refusal(&refusal, from, area);
    else
        result = PyBytes_FromStringAndSize(from + area, found->area_size);
    release_scratch(from, area);
    return result;
}

/* unspill(destination, moves, wipe=True): copy pieces (from, to, size) of this thread's spill area, then wipe it */
static bool move_pieces(const struct carrier *carrier, const Py_buffer *to, PyObject *moves)
{
    Py_ssize_t count = PySequence_Size(moves);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t source, target, size;
        PyObject *piece = PySequence_GetItem(moves, i);
        if (piece && !PyTuple_Check(piece))
            PyErr_SetString(PyExc_TypeError, "a move is a tuple (from, to, size)");
        bool parsed = piece && PyTuple_Check(piece) &&
                      PyArg_ParseTuple(piece, "nnn;a move is (from, to, size)", &source, &target, &size);
        Py_XDECREF(piece);
        if (!parsed)
            return false;
        if (source < 0 || target < 0 || size < 0 || (size_t)source > carrier->spill_size ||
            (size_t)size > carrier->spill_size - (size_t)source || target > to->len || size > to->len - target) {
            PyErr_SetString(PyExc_ValueError, "a move leaves the spill area or the destination");
            return false;
        }
        if (size)
            memcpy((char *)to->buf + target, (char *)carrier->spill + source, (size_t)size);
    }
    return count >= 0;
}

static PyObject *core_unspill(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer to;
    PyObject *moves;
    int wipe = 1;
    if (!PyArg_ParseTuple(args, "w*O|p:unspill", &to, &moves, &wipe))
        return NULL;
    struct carrier *carrier = carrier_of_thread();
    bool done = carrier && move_pieces(carrier, &to, moves);
    PyBuffer_Release(&to);
    if (carrier && wipe)
        explicit_bzero(carrier->spill, carrier->spill_size);
    if (done)
        Py_RETURN_NONE;
    return PyErr_Occurred() ? NULL : raise_no_carrier();
}

static PyMethodDef core_methods[] = {
    {"cpuid", core_cpuid, METH_VARARGS, NULL},
    {"xgetbv", core_xgetbv, METH_VARARGS, NULL},
    {"mxcsr_mask", core_mxcsr_mask, METH_NOARGS, NULL},
    {"features", core_features, METH_NOARGS, NULL},
    {"tsc_hz", core_tsc_hz, METH_NOARGS, NULL},
    {"exchange", (PyCFunction)(void (*)(void))core_exchange, METH_VARARGS | METH_KEYWORDS, NULL},
    {"check_image", check_image, METH_O, NULL},
    {"unspill", core_unspill, METH_VARARGS, NULL},
    {0},
};

static int add_type(PyObject *module, const char *name, PyType_Spec *spec, int (*remember)(PyObject *))
{
    PyObject *type = PyType_FromSpec(spec);
    if (!type || (remember && remember(type)) || PyModule_AddObjectRef(module, name, type)) {
        Py_XDECREF(type);
        return -1;
    }
    Py_DECREF(type);
    return 0;
}

static int add_c_api(PyObject *module)
{
    PyObject *capsule = PyCapsule_New((void *)c_api(), FPSTATE_API_NAME, NULL);
    int failed = capsule ? PyModule_AddObjectRef(module, "fpstate_c_api", capsule) : -1;
    Py_XDECREF(capsule);
    return failed;
}

static int core_exec(PyObject *module)
{
    static const struct {
        const char *name;
        long value;
    } numbers[] = {
        {"EXIT_NONE", EXIT_NONE},           {"EXIT_CALL", EXIT_CALL},       {"EXIT_PORT", EXIT_PORT},
        {"EXIT_FAULT", EXIT_FAULT},         {"EXIT_PREEMPTED", EXIT_PREEMPTED}, {"EXIT_REFUSED", EXIT_REFUSED},
        {"EXIT_EXPIRED", EXIT_EXPIRED},     {"EXIT_SEGMENT", EXIT_SEGMENT},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value))
            return -1;
    if (PyModule_AddFunctions(module, ptrace_methods) || PyModule_AddFunctions(module, bulk_methods) ||
        PyModule_AddFunctions(module, bench_methods) || PyModule_AddFunctions(module, bench_context_methods) ||
        PyModule_AddFunctions(module, switch_methods) || add_c_api(module) ||
        PyModule_AddFunctions(module, choice_methods) || PyModule_AddFunctions(module, state_methods))
        return -1;
    return add_type(module, "Slab", &slab_spec, NULL) || add_type(module, "Memory", &memory_spec, NULL) ||
                   add_type(module, "Vcpu", &vcpu_spec, NULL) ||
                   add_type(module, "Queue", &queue_spec, NULL) ||
                   add_type(module, "Context", &context_spec, remember_context_type) ||
                   add_type(module, "Order", &order_spec, NULL)
               ? -1
               : 0;
}

static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};
static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT, "fpstate._core", NULL, 0, core_methods, core_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
