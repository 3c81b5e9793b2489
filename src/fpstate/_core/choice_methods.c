/* Which core switches, and trials of each. */
#include "types.h"

#include "choice.h"

#include <errno.h>

static PyObject *choice_report(const struct choice *choice)
{
    return Py_BuildValue("{sssssKsKs(kkk)s(KKK)sKsK}", "core", choice->core->name, "reason", choice->reason, "pairs",
                         (unsigned long long)choice->report.pairs, "mismatches",
                         (unsigned long long)choice->report.mismatches, "permille",
                         (unsigned long)choice->permille[0], (unsigned long)choice->permille[1],
                         (unsigned long)choice->permille[2], "settled", (unsigned long long)choice->settled[0],
                         (unsigned long long)choice->settled[1], (unsigned long long)choice->settled[2], "test_cycles", (unsigned long long)choice->test_cycles,
                         "measure_cycles", (unsigned long long)choice->measure_cycles);
}

static PyObject *failed_choice(const struct choice *choice)
{
    raise_error(choice->error == EINVAL ? "SettingError" : "UnsupportedHere", choice->reason);
    return NULL;
}

/* core_choice(setting=None, candidate=None): what was chosen; with arguments, what would be */
static PyObject *core_choice_report(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"setting", "candidate", NULL};
    const char *setting = NULL, *candidate = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|zz:core_choice", names, &setting, &candidate))
        return NULL;
    if (!setting && !candidate)
        return core_choice()->error ? failed_choice(core_choice()) : choice_report(core_choice());
    struct choice choice;
    core_choose(setting, core_named(candidate ? candidate : "fast"), &choice);
    return choice.error ? failed_choice(&choice) : choice_report(&choice);
}

static PyObject *core_use_method(PyObject *module, PyObject *argument)
{
    (void)module;
    PyObject *bytes = PyUnicode_AsUTF8String(argument);
    if (!bytes)
        return NULL;
    if (core_ready()) {
        Py_DECREF(bytes);
        return failed_choice(core_choice());
    }
    const char *before = chosen_core->name;
    int error = core_use(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    if (error == EINVAL)
        raise_error("SettingError", "a core is portable or fast");
    else if (error)
        raise_error("UnsupportedHere", "the fast core");
    return error ? NULL : PyUnicode_FromString(before);
}

static bool offsets_fit(const struct arrangement *arrangement)
{
    for (uint32_t i = 2; i <= HI16_ZMM_NUMBER; i++) {
        uint32_t offset = arrangement_offset(arrangement, i);
        if (arrangement->room >> i & 1 &&
            (offset < LEGACY_AND_HEADER || offset > processor()->area_size + TRIAL_SLACK - processor()->component[i].size))
            return false;
    }
    return true;
}

/* core_trial(core, count=0, seed=1, *, moves=-1, offsets=None, standard=False): count random pairs, 0: every pair of states */
static PyObject *core_trial(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"core", "count", "seed", "moves", "offsets", "standard", NULL};
    const char *name;
    unsigned long long count = 0, seed = 1, moves = ~0ull;
    PyObject *offsets = Py_None;
    int standard = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|KK$KOp:core_trial", names, &name, &count, &seed, &moves, &offsets,
                                     &standard))
        return NULL;
    const struct core *core = core_named(name);
    if (!core) {
        raise_error("UnsupportedHere", "a core of this name");
        return NULL;
    }
    struct arrangement arrangement = arrangement_of(whole()->room, whole()->xcomp_bv && !standard);
    arrangement.moves &= core->needs & (moves | X87 | SSE);
    if (offsets != Py_None) {
        arrangement.xcomp_bv = 0;
        if (!PyArg_ParseTuple(offsets, "IIII;four offsets", &arrangement.avx, &arrangement.opmask,
                              &arrangement.zmm_hi256, &arrangement.hi16_zmm))
            return NULL;
        if (!offsets_fit(&arrangement)) {
            PyErr_SetString(PyExc_ValueError, "a component leaves the trial's area");
            return NULL;
        }
    }
    struct trial *trial = trial_open(seed);
    if (!trial)
        return context_failed(ENOMEM);
    struct trial_report report;
    if (count)
        trial_random_pairs(trial, core, &arrangement, count, &report);
    else
        trial_every_pair(trial, core, &arrangement, &report);
    trial_close(trial);
    return Py_BuildValue("{sKsKsKsKsIsO}", "pairs", (unsigned long long)report.pairs, "mismatches",
                         (unsigned long long)report.mismatches, "from", (unsigned long long)report.from, "to",
                         (unsigned long long)report.to, "component", (unsigned)report.component, "saved",
                         report.saved ? Py_True : Py_False);
}

/* core_cycles(core, one, other, rounds): time stamp cycles of so many switches to and fro, and what is in use by then */
static PyObject *core_cycles(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    unsigned long long one, other;
    unsigned rounds;
    if (!PyArg_ParseTuple(args, "sKKI:core_cycles", &name, &one, &other, &rounds))
        return NULL;
    const struct core *core = core_named(name);
    struct trial *trial = core ? trial_open(1) : NULL;
    if (!trial) {
        raise_error("UnsupportedHere", "a core of this name, or memory for a trial");
        return NULL;
    }
    uint64_t settled, cycles = trial_cycles(trial, core, one, other, rounds, &settled);
    trial_close(trial);
    return Py_BuildValue("KK", (unsigned long long)cycles, (unsigned long long)settled);
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS
PyMethodDef choice_methods[] = {
    {"core_choice", WITH_KEYWORDS(core_choice_report), NULL},
    {"core_use", core_use_method, METH_O, NULL},
    {"core_trial", WITH_KEYWORDS(core_trial), NULL},
    {"core_cycles", core_cycles, METH_VARARGS, NULL},
    {0},
};
