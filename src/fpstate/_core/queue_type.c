/* Queue: vCPUs in a ring that one host thread at a time runs, without the GIL. */
#include "types.h"

#include "cores.h"

#include <string.h>

enum { SAMPLES = 1 << 16, QUANTUM_MINIMUM_NS = 20000 };

typedef struct {
    PyObject_HEAD
    struct queue queue;
} Queue;

static PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"compact", "timing", NULL};
    int compact = processor()->xsavec && processor()->xgetbv1, timing = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|pp:Queue", names, &compact, &timing))
        return NULL;
    if (!processor()->xcr0) {
        raise_error("UnsupportedHere", "XSAVE (CPUID.1:ECX[27], OSXSAVE)");
        return NULL;
    }
    if (!processor()->fsgsbase) {
        raise_error("UnsupportedHere", "FSGSBASE in user mode (AT_HWCAP2 bit 1; Linux 5.9 or newer)");
        return NULL;
    }
    if (compact && !(processor()->xsavec && processor()->xgetbv1)) {
        raise_error("UnsupportedHere", "XSAVEC with XGETBV(1) (CPUID.(0DH,1):EAX[1] and [2])");
        return NULL;
    }
    int error = core_ready();
    if (error)
        return context_failed(error);
    Queue *self = (Queue *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    self->queue.compact = compact;
    self->queue.timing = timing;
    self->queue.samples = timing ? PyMem_Calloc(SAMPLES, sizeof *self->queue.samples) : NULL;
    self->queue.sample_capacity = timing ? SAMPLES : 0;
    if (timing && !self->queue.samples) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static bool usable(struct queue *queue)
{
    if (!queue->busy)
        return true;
    raise_error("VsoError", "this queue is running in another thread");
    return false;
}

static void drop(struct queue *queue, struct vcpu *vcpu)
{
    PyObject *object = vcpu->object;
    queue_remove(queue, vcpu);
    Py_DECREF(object);
}

static void queue_dealloc(PyObject *object)
{
    Queue *self = (Queue *)object;
    PyTypeObject *type = Py_TYPE(object);
    while (self->queue.head)
        drop(&self->queue, self->queue.head);
    PyMem_Free(self->queue.samples);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *queue_add_method(PyObject *object, PyObject *argument)
{
    struct queue *queue = &((Queue *)object)->queue;
    if (!is_vcpu(argument)) {
        PyErr_SetString(PyExc_TypeError, "add() takes a Vcpu");
        return NULL;
    }
    struct vcpu *vcpu = vcpu_of(argument);
    if (!usable(queue))
        return NULL;
    if (vcpu->queue) {
        raise_error("VsoError", "this vCPU is in a queue already");
        return NULL;
    }
    if (vcpu->spilled) {
        raise_error("VsoError", "this vCPU's state waits for a larger buffer: attach one first");
        return NULL;
    }
    if (!vcpu->fpstate || vcpu->rip < vcpu->code_start || vcpu->rip >= vcpu->code_end) {
        raise_error("VsoError", "this vCPU has no program: rip lies outside of its memory");
        return NULL;
    }
    Py_INCREF(argument);
    queue_add(queue, vcpu);
    Py_RETURN_NONE;
}

static PyObject *queue_remove_method(PyObject *object, PyObject *argument)
{
    struct queue *queue = &((Queue *)object)->queue;
    if (!usable(queue))
        return NULL;
    if (!is_vcpu(argument) || vcpu_of(argument)->queue != queue) {
        raise_error("VsoError", "this vCPU is not in this queue");
        return NULL;
    }
    drop(queue, vcpu_of(argument));
    Py_RETURN_NONE;
}

/* run(quantum_ns, budget_ns, max_slices=0): the vCPU that left the queue for a decision, or None */
static PyObject *queue_run_method(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"quantum_ns", "budget_ns", "max_slices", NULL};
    struct queue *queue = &((Queue *)object)->queue;
    unsigned long long quantum, budget, slices = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KK|K:run", names, &quantum, &budget, &slices) || !usable(queue))
        return NULL;
    if (quantum < QUANTUM_MINIMUM_NS) {
        PyErr_Format(PyExc_ValueError, "a quantum of %llu ns; below %d ns ticks would follow ticks and nothing would run",
                     quantum, QUANTUM_MINIMUM_NS);
        return NULL;
    }
    struct run_limits limits = {.quantum_ns = quantum, .budget_ns = budget, .max_slices = slices};
    struct vcpu *decision;
    int result;
    queue->busy = true;
    Py_BEGIN_ALLOW_THREADS
    result = queue_run(queue, &limits, &decision);
    Py_END_ALLOW_THREADS
    queue->busy = false;
    if (result)
        return raise_no_carrier();
    if (!decision)
        Py_RETURN_NONE;
    return decision->object; /* the queue's reference becomes the caller's */
}

static PyObject *queue_samples(PyObject *object, PyObject *none)
{
    (void)none;
    const struct queue *queue = &((Queue *)object)->queue;
    size_t count = queue->sample_count < queue->sample_capacity ? queue->sample_count : queue->sample_capacity;
    return PyBytes_FromStringAndSize((const char *)queue->samples, (Py_ssize_t)(count * sizeof *queue->samples));
}

static Py_ssize_t queue_length(PyObject *object)
{
    return (Py_ssize_t)((Queue *)object)->queue.length;
}

static PyObject *queue_counter(PyObject *object, void *offset)
{
    return PyLong_FromUnsignedLongLong(*(uint64_t *)((char *)&((Queue *)object)->queue + (size_t)offset));
}

static PyMethodDef queue_methods[] = {
    {"add", queue_add_method, METH_O, NULL},
    {"remove", queue_remove_method, METH_O, NULL},
    {"run", (PyCFunction)(void (*)(void))queue_run_method, METH_VARARGS | METH_KEYWORDS, NULL},
    {"samples", queue_samples, METH_NOARGS, NULL},
    {0},
};
#define AT(field) (void *)offsetof(struct queue, field)
static PyGetSetDef queue_getset[] = {
    {"switches", queue_counter, NULL, NULL, AT(switches)},
    {"preemptions", queue_counter, NULL, NULL, AT(preemptions)},
    {"yields", queue_counter, NULL, NULL, AT(yields)},
    {"saves", queue_counter, NULL, NULL, AT(saves)},
    {"ticks_in_host", queue_counter, NULL, NULL, AT(ticks_in_host)},
    {0},
};
static PyType_Slot queue_slots[] = {
    {Py_tp_new, queue_new},         {Py_tp_dealloc, queue_dealloc}, {Py_tp_methods, queue_methods},
    {Py_tp_getset, queue_getset},   {Py_sq_length, queue_length},   {0, NULL},
};
PyType_Spec queue_spec = {"fpstate._core.Queue", sizeof(Queue), 0, Py_TPFLAGS_DEFAULT, queue_slots};
