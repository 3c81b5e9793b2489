/* Vcpu: the general registers of one guest, where its vector state lies, and why it last left. */
#include "types.h"

#include "arrangement.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    struct vcpu *vcpu; /* 64-byte aligned, hence apart from the object */
} Vcpu;

struct vcpu *vcpu_of(PyObject *object)
{
    return ((Vcpu *)object)->vcpu;
}

static bool changeable(struct vcpu *vcpu)
{
    if (!vcpu->queue || !vcpu->queue->busy)
        return true;
    raise_error("VsoError", "this vCPU's queue is running: its state cannot be changed now");
    return false;
}

static PyObject *vcpu_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Vcpu", names))
        return NULL;
    Vcpu *self = (Vcpu *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    size_t size = (sizeof *self->vcpu + 63) & ~63ul;
    self->vcpu = aligned_alloc(64, size);
    if (!self->vcpu) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    memset(self->vcpu, 0, size);
    self->vcpu->object = self;
    self->vcpu->fpstate = initial_image();
    self->vcpu->arrangement = *initial_arrangement();
    self->vcpu->restore_mask = processor()->managed_mask;
    if (processor()->pkru)
        self->vcpu->pkru = pkru_read();
    return (PyObject *)self;
}

static void vcpu_dealloc(PyObject *object)
{
    Vcpu *self = (Vcpu *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->vcpu) {
        explicit_bzero(self->vcpu, sizeof *self->vcpu);
        free(self->vcpu);
    }
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

bool is_vcpu(PyObject *object)
{
    return PyType_GetSlot(Py_TYPE(object), Py_tp_dealloc) == (void *)vcpu_dealloc;
}

/* attach(buffer, save_mask): the state lies in this memory from now on; None and 0: in no memory, it is initial.
 * The caller keeps the memory alive; the core keeps a plain address. */
static PyObject *vcpu_attach(PyObject *object, PyObject *args)
{
    struct vcpu *vcpu = vcpu_of(object);
    PyObject *where;
    unsigned long long mask;
    if (!PyArg_ParseTuple(args, "OK:attach", &where, &mask) || !changeable(vcpu))
        return NULL;
    if (where == Py_None) {
        vcpu->fpstate = initial_image();
        vcpu->save_mask = 0;
        vcpu->arrangement = *initial_arrangement();
    } else {
        Py_buffer view;
        struct arrangement arrangement = arrangement_of(mask, true);
        if (!get_room(where, &view, &arrangement))
            return NULL;
        vcpu->fpstate = view.buf;
        vcpu->save_mask = mask;
        vcpu->arrangement = arrangement;
        PyBuffer_Release(&view);
    }
    vcpu->spilled = 0;
    vcpu->slack_saves = 0;
    Py_RETURN_NONE;
}

static PyObject *vcpu_set_register(PyObject *object, PyObject *args)
{
    struct vcpu *vcpu = vcpu_of(object);
    unsigned index;
    unsigned long long value;
    if (!PyArg_ParseTuple(args, "IK:set_register", &index, &value) || !changeable(vcpu))
        return NULL;
    if (index > 15) {
        PyErr_SetString(PyExc_ValueError, "general registers are numbered 0 to 15");
        return NULL;
    }
    vcpu->gpr[index] = value;
    Py_RETURN_NONE;
}

static PyObject *vcpu_registers(PyObject *object, void *closure)
{
    (void)closure;
    PyObject *tuple = PyTuple_New(16);
    for (Py_ssize_t i = 0; tuple && i < 16; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(vcpu_of(object)->gpr[i]);
        if (!value || PyTuple_SetItem(tuple, i, value))
            Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *vcpu_fault(PyObject *object, void *closure)
{
    (void)closure;
    const struct fault *fault = &vcpu_of(object)->fault;
    return Py_BuildValue("(iiKKK)", fault->signal, fault->code, (unsigned long long)fault->trap,
                         (unsigned long long)fault->error, (unsigned long long)fault->address);
}

static PyObject *vcpu_queued(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(vcpu_of(object)->queue != NULL);
}

static PyObject *get_u64(PyObject *object, void *offset)
{
    return PyLong_FromUnsignedLongLong(*(uint64_t *)((char *)vcpu_of(object) + (size_t)offset));
}

static PyObject *get_u32(PyObject *object, void *offset)
{
    return PyLong_FromUnsignedLong(*(uint32_t *)((char *)vcpu_of(object) + (size_t)offset));
}

static unsigned long long number_in(PyObject *value)
{
    if (value)
        return PyLong_AsUnsignedLongLong(value);
    PyErr_SetString(PyExc_AttributeError, "a vCPU's attributes cannot be deleted");
    return 0;
}

static int set_u64(PyObject *object, PyObject *value, void *offset)
{
    unsigned long long number = number_in(value);
    if (PyErr_Occurred() || !changeable(vcpu_of(object)))
        return -1;
    *(uint64_t *)((char *)vcpu_of(object) + (size_t)offset) = number;
    return 0;
}

static int set_u32(PyObject *object, PyObject *value, void *offset)
{
    unsigned long long number = number_in(value);
    if (PyErr_Occurred() || !changeable(vcpu_of(object)))
        return -1;
    if (number > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "value does not fit 32 bits");
        return -1;
    }
    *(uint32_t *)((char *)vcpu_of(object) + (size_t)offset) = (uint32_t)number;
    return 0;
}

static PyMethodDef vcpu_methods[] = {
    {"attach", vcpu_attach, METH_VARARGS, NULL},
    {"set_register", vcpu_set_register, METH_VARARGS, NULL},
    {0},
};
#define AT(field) (void *)offsetof(struct vcpu, field)
static PyGetSetDef vcpu_getset[] = {
    {"registers", vcpu_registers, NULL, NULL, NULL},
    {"fault", vcpu_fault, NULL, NULL, NULL},
    {"queued", vcpu_queued, NULL, NULL, NULL},
    {"rip", get_u64, set_u64, NULL, AT(rip)},
    {"rflags", get_u64, set_u64, NULL, AT(rflags)},
    {"code_start", get_u64, set_u64, NULL, AT(code_start)},
    {"code_end", get_u64, set_u64, NULL, AT(code_end)},
    {"save_mask", get_u64, NULL, NULL, AT(save_mask)},
    {"restore_mask", get_u64, set_u64, NULL, AT(restore_mask)},
    {"in_use", get_u64, NULL, NULL, AT(in_use)},
    {"spilled", get_u32, NULL, NULL, AT(spilled)},
    {"exit_kind", get_u32, NULL, NULL, AT(exit_kind)},
    {"pkru", get_u32, set_u32, NULL, AT(pkru)},
    {"slices", get_u64, NULL, NULL, AT(slices)},
    {"preemptions", get_u64, NULL, NULL, AT(preemptions)},
    {"cycles", get_u64, NULL, NULL, AT(cycles)},
    {"ran", get_u64, NULL, NULL, AT(ran)},
    {"cycle_limit", get_u64, set_u64, NULL, AT(cycle_limit)},
    {"shrink_after", get_u32, set_u32, NULL, AT(shrink_after)},
    {0},
};
static PyType_Slot vcpu_slots[] = {
    {Py_tp_new, vcpu_new},
    {Py_tp_dealloc, vcpu_dealloc},
    {Py_tp_methods, vcpu_methods},
    {Py_tp_getset, vcpu_getset},
    {0, NULL},
};
PyType_Spec vcpu_spec = {"fpstate._core.Vcpu", sizeof(Vcpu), 0, Py_TPFLAGS_DEFAULT, vcpu_slots};
