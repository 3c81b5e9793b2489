/* Order: contexts in the order in which they take turns, and the loop over them that stays in C. */
#include "types.h"

#include "context.h"

enum { STRETCH = 1 << 16 }; /* switches: some milliseconds */

typedef struct {
    PyObject_HEAD
    PyObject *contexts;     /* a tuple: they live as long as this */
    struct context **order; /* as often as they take a turn */
    size_t length, position;
} Order;

/* Above the second-level cache the next context's lines are worth fetching early; below, it only costs. */
static bool worth_fetching(size_t contexts)
{
    return contexts * processor()->area_size > processor()->second_level_cache;
}

static bool fill(Order *self, PyObject *indices)
{
    Py_ssize_t contexts = PyTuple_Size(self->contexts);
    Py_ssize_t length = indices ? PySequence_Size(indices) : contexts;
    if (length < 1) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "an order has at least one context");
        return false;
    }
    self->order = PyMem_Calloc((size_t)length, sizeof *self->order);
    if (!self->order) {
        PyErr_NoMemory();
        return false;
    }
    self->length = (size_t)length;
    for (Py_ssize_t i = 0; i < length; i++) {
        Py_ssize_t at = i;
        if (indices) {
            PyObject *index = PySequence_GetItem(indices, i);
            at = index ? PyLong_AsSsize_t(index) : -1;
            Py_XDECREF(index);
        }
        if (at < 0 || at >= contexts) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_IndexError, "index %zd at place %zd: there are %zd contexts", at, i, contexts);
            return false;
        }
        self->order[i] = context_of(PyTuple_GetItem(self->contexts, at));
    }
    return true;
}

static PyObject *order_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"contexts", "indices", NULL};
    PyObject *contexts, *indices = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:Order", names, &contexts, &indices))
        return NULL;
    Order *self = (Order *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    self->contexts = PySequence_Tuple(contexts);
    bool valid = self->contexts != NULL;
    for (Py_ssize_t i = 0; valid && i < PyTuple_Size(self->contexts); i++)
        valid = is_context(PyTuple_GetItem(self->contexts, i));
    if (!valid || !fill(self, indices == Py_None ? NULL : indices)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void order_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((Order *)object)->contexts);
    PyMem_Free(((Order *)object)->order);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Load the one whose turn it is, switch so often, save the last and give the thread its control words back. */
static int take_turns(Order *self, uint64_t switches, bool fetch)
{
    uint32_t mxcsr = mxcsr_read();
    uint16_t fcw = fcw_read();
    int error = context_restore(self->order[self->position]);
    if (!error) {
        error = context_rotate(self->order, self->length, &self->position, switches, fetch);
        int unsaved = context_save(self->order[self->position]);
        error = error ? error : unsaved;
    }
    xstate_restore(initial_image(), processor()->managed_mask);
    control_words_write(mxcsr, fcw);
    return error;
}

/* Between stretches every state is in its context, so that an interrupt and other threads may come in. */
static bool let_others_in(void)
{
    Py_BEGIN_ALLOW_THREADS
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() == 0;
}

/* run(switches, prefetch=None) */
static PyObject *order_run(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"switches", "prefetch", NULL};
    Order *self = (Order *)object;
    PyObject *number, *prefetch = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:run", names, &number, &prefetch))
        return NULL;
    unsigned long long switches = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    int fetch = prefetch == Py_None ? worth_fetching((size_t)PyTuple_Size(self->contexts)) : PyObject_IsTrue(prefetch);
    if (fetch < 0)
        return NULL;
    int error = 0;
    for (; switches > STRETCH && !error; switches -= STRETCH) {
        error = take_turns(self, STRETCH, fetch);
        if (!error && !let_others_in())
            return NULL;
    }
    error = error ? error : take_turns(self, switches, fetch);
    if (error)
        return context_failed(error);
    Py_RETURN_NONE;
}

static Py_ssize_t order_length(PyObject *object)
{
    return (Py_ssize_t)((Order *)object)->length;
}

static PyObject *get_position(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((Order *)object)->position);
}

static PyMethodDef order_methods[] = {
    {"run", (PyCFunction)(void (*)(void))order_run, METH_VARARGS | METH_KEYWORDS, NULL},
    {0},
};
static PyGetSetDef order_getset[] = {
    {"position", get_position, NULL, NULL, NULL},
    {0},
};
static PyType_Slot order_slots[] = {
    {Py_tp_doc, (void *)"Contexts in the order of their turns; run() switches through them in C."},
    {Py_tp_new, order_new},       {Py_tp_dealloc, order_dealloc}, {Py_tp_methods, order_methods},
    {Py_tp_getset, order_getset}, {Py_sq_length, order_length},   {0, NULL},
};
PyType_Spec order_spec = {"fpstate._core.Order", sizeof(Order), 0, Py_TPFLAGS_DEFAULT, order_slots};
