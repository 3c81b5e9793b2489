/* save_state and load_state: the thread's registers to a VSO's buffer and back, for a manager's switch. */
#include "types.h"

#include "choice.h"
#include "checked_load.h"

#include <errno.h>
#include <stdio.h>

#define FREELY_CHOSEN ((uint64_t)(X87 | SSE | AVX | AVX512))

static bool get_area(PyObject *object, Py_buffer *view, int flags)
{
    if (PyObject_GetBuffer(object, view, flags))
        return false;
    if ((uintptr_t)view->buf % 64 == 0 && view->len >= LEGACY_AND_HEADER)
        return true;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, "a state buffer is 64-byte aligned and has at least 576 bytes");
    return false;
}

bool get_room(PyObject *object, Py_buffer *view, const struct arrangement *arrangement)
{
    uint64_t room = arrangement->room, xcr0 = processor()->xcr0;
    size_t needed = arrangement_extent(arrangement, room);
    char why[128];
    if (!get_area(object, view, PyBUF_WRITABLE))
        return false;
    if (!(room & ~xcr0) && needed <= (size_t)view->len)
        return true;
    if (room & ~xcr0)
        snprintf(why, sizeof why, "room for components %#llx: XCR0 is %#llx", (unsigned long long)room,
                 (unsigned long long)xcr0);
    else
        snprintf(why, sizeof why, "a state buffer for components %#llx has at least %zu bytes, not %zd",
                 (unsigned long long)room, needed, view->len);
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_ValueError, why);
    return false;
}

/* Without XGETBV(1) nobody knows before the save: all of it goes to the spill area. */
static uint64_t in_use_now(void)
{
    return processor()->xgetbv1 ? xgetbv(1) & processor()->managed_mask : ~0ull;
}

/* A carrier's timer needs the tick's signal, which the first acquisition chooses. */
static struct carrier *carrier_with_signal(void)
{
    if (!tick_signal()) {
        if (signals_acquire())
            return NULL;
        signals_release();
    }
    return carrier_of_thread();
}

/* save_state(buffer, room): (in use, whether it lies in the spill area) */
static PyObject *core_save_state(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *where;
    unsigned long long room;
    Py_buffer view = {0};
    if (!PyArg_ParseTuple(args, "OK:save_state", &where, &room))
        return NULL;
    struct carrier *carrier = carrier_with_signal();
    if (!carrier)
        return raise_no_carrier();
    int error = core_ready();
    if (error)
        return context_failed(error);
    struct arrangement arrangement = arrangement_of(room, processor()->xsavec);
    if (where == Py_None)
        room = 0;
    else if (!get_room(where, &view, &arrangement))
        return NULL;
    uint64_t in_use = in_use_now();
    bool spilled = in_use & ~room;
    if (spilled)
        in_use = portable_core()->save(carrier->spill, whole());
    else if (view.buf)
        in_use = chosen_core->save(view.buf, &arrangement);
    if (view.buf)
        PyBuffer_Release(&view);
    return Py_BuildValue("(KO)", (unsigned long long)in_use, spilled ? Py_True : Py_False);
}

/* Of a legal image. FXRSTOR looks at MXCSR even where XSTATE_BV says that SSE is absent; a compacted XRSTOR does not. */
static bool moves_take(const char *image, const struct arrangement *arrangement)
{
    return arrangement->xcomp_bv && !(*(const uint64_t *)(image + HEADER_AT) & ~FREELY_CHOSEN) &&
           !(*(const uint32_t *)(image + MXCSR_AT) & arrangement->mxcsr_reserved);
}

static struct refusal load(const struct private_copy *copy, void *none)
{
    (void)none;
    uint64_t xcomp_bv = *(const uint64_t *)(copy->image + HEADER_AT + 8);
    struct arrangement arrangement = arrangement_of(xcomp_bv & ~COMPACTED & processor()->xcr0, xcomp_bv & COMPACTED);
    if (moves_take(copy->image, &arrangement))
        return guarded_load(copy->image, &arrangement, chosen_core->load);
    return xstate_restore(copy->image, processor()->managed_mask);
}

/* load_state(buffer): its image becomes the registers' state; None: the initial one; what is illegal is not loaded */
static PyObject *core_load_state(PyObject *module, PyObject *where)
{
    (void)module;
    Py_buffer view;
    int error = core_ready();
    if (error)
        return context_failed(error);
    if (where == Py_None) {
        chosen_core->load(initial_image(), initial_arrangement());
        Py_RETURN_NONE;
    }
    if (!get_area(where, &view, PyBUF_SIMPLE))
        return NULL;
    error = load_checked(&view, load, NULL);
    PyBuffer_Release(&view);
    if (error)
        return error < 0 ? NULL : context_failed(error);
    Py_RETURN_NONE;
}

/* load_spilled(): what save_state put into the spill area becomes the registers' state again */
static PyObject *core_load_spilled(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    struct carrier *carrier = carrier_with_signal();
    if (!carrier)
        return raise_no_carrier();
    if (!*(const uint64_t *)((const char *)carrier->spill + HEADER_AT)) { /* what is spilled is in use */
        raise_error("VsoError", "no state lies in this thread's spill area: nothing was saved there");
        return NULL;
    }
    guard_acquire();
    struct refusal refusal = xstate_restore(carrier->spill, processor()->managed_mask);
    guard_release();
    if (!refusal.signal)
        Py_RETURN_NONE;
    raise_refusal(&refusal, carrier->spill, carrier->spill_size);
    return NULL;
}

PyMethodDef state_methods[] = {
    {"save_state", core_save_state, METH_VARARGS, NULL},
    {"load_state", core_load_state, METH_O, NULL},
    {"load_spilled", core_load_spilled, METH_NOARGS, NULL},
    {0},
};
