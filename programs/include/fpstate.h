/* fpstate's switch, for runtimes in C and in whatever can call C.
 *
 * Works from C11 and C++17, GCC and Clang, on x86-64 with the System V calling convention. Needs no Python header;
 * define FPSTATE_WITH_PYTHON before including it for fpstate_import(), which a C extension module calls.
 *
 * A table of functions, struct fpstate_api, comes out of the capsule named FPSTATE_API_NAME. It lives as long as the
 * process. Nothing in it needs the GIL or raises a Python exception.
 *
 * Two switches
 *   switch_control  MXCSR and FCW, eight bytes. At a call of a function the ABI keeps nothing else of the x87 and vector
 *                   state (System V AMD64 psABI, 3.2.1), so this is all that a cooperative switch of compiled code needs.
 *   switch_state    everything that XCR0 enables but PKRU. For code that keeps values in vector, opmask or x87 registers
 *                   over the switch: assembly, code of a JIT with a convention of its own, state put there by a debugger.
 *
 * What a function returns
 *   0        done
 *   EINVAL   an argument is wrong: NULL, not a context, storage too small or not aligned, reserved bits in MXCSR; from
 *            create and create_in also a value of the environment's FPSTATE_CORE (core_reason says so)
 *   ENOMEM   no memory; nothing has changed
 *   ENOTSUP  not on this processor, or in this kernel: there is no XSAVE
 *
 * Registers
 *   Every function follows the calling convention: rbx, rbp, rsp and r12 to r15 are kept, the other general registers
 *   and the flags are not. The vector, opmask and x87 registers are caller-saved: restore and switch_state load all of
 *   them (the fast core runs VZEROUPPER or VZEROALL on the way); save, switch_control, prefetch and park leave them as
 *   they are; the others may overwrite them. MXCSR and FCW are callee-saved by the convention, and restore, switch_state
 *   and switch_control change them: that is what they are for.
 *   save, restore and switch_state take what is in the registers at the call itself: a compiler keeps no value there over
 *   a call, so what they see of compiled code is what was left behind.
 *   Compiled code between a restore and the point where its registers are wanted must not use vector registers: call from
 *   assembly, or compile with -mgeneral-regs-only. An x87 stack that is not empty breaks compiled x87 code.
 *
 * Threads
 *   Every function may be called by any thread, at the same time. A context belongs to whoever holds it: one call at a
 *   time may name it. It may be saved by one thread and restored by another.
 *   save, restore and switch_state of contexts in storage of the caller's, and switch_control, take no lock and no memory:
 *   they may be called in a signal handler. The others may not.
 *
 * Compatibility
 *   version  counts changes of meaning. A program for another version is refused.
 *   size     bytes of the table. Members are only ever added at its end: a program may use each member for which
 *            FPSTATE_API_HAS(api, member) holds; those of the first edition are there whenever the check passes.
 */
#ifndef FPSTATE_H
#define FPSTATE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FPSTATE_API_VERSION 1u
#define FPSTATE_API_NAME "fpstate._core.fpstate_c_api" /* of the capsule */

#define FPSTATE_MXCSR_INITIAL 0x1F80u
#define FPSTATE_FCW_INITIAL 0x037Fu

/* One register state; opaque. */
typedef struct fpstate_context fpstate_context;

/* The control words. Status bits in MXCSR travel with it; x87's status word does not (see docs/c-api.md). */
typedef struct fpstate_control {
    uint32_t mxcsr;
    uint16_t fcw;
    uint16_t reserved; /* neither read nor written */
} fpstate_control;

typedef struct fpstate_api {
    uint32_t version; /* FPSTATE_API_VERSION of the library */
    uint32_t size;    /* bytes of this struct in the library */

    /* Which core switches, "portable" or "fast", or NULL where none can; and why. The first call of one of these, of create
     * or of create_in chooses, and may take milliseconds. */
    const char *(*core)(void);
    const char *(*core_reason)(void);

    /* Bytes of storage for create_in, and their alignment, a power of two; of this processor, constant in a process. */
    size_t (*context_size)(void);
    size_t (*context_alignment)(void);

    /* A context in the initial state (FCW 37FH, MXCSR 1F80H, all else zero or empty).
     * create takes memory of the library's: little for a state that has nothing in use, and save, restore and switch_state
     * may return ENOMEM. create_in takes the caller's, which must be neither moved nor written to before destroy. */
    int (*create)(fpstate_context **context);
    int (*create_in)(void *storage, size_t size, fpstate_context **context);
    /* The state is scrubbed, memory of the library's is given back. NULL is let pass. */
    void (*destroy)(fpstate_context *context);

    /* The registers become the context's state; the registers stay. */
    int (*save)(fpstate_context *context);
    /* The context's state becomes the registers. */
    int (*restore)(fpstate_context *context);
    /* The registers become the state of from, the state of to the registers. Both may be the same. */
    int (*switch_state)(fpstate_context *from, fpstate_context *to);
    /* MXCSR and FCW to *from, those of *to current. */
    int (*switch_control)(fpstate_control *from, const fpstate_control *to);

    /* Fetch a context's state into the cache, for a switch to it that comes soon. */
    void (*prefetch)(const fpstate_context *context);
    /* Pack a state that will not run soon into little memory; the next restore or switch unpacks it. Nothing happens to a
     * context in storage of the caller's. */
    int (*park)(fpstate_context *context);
} fpstate_api;

/* The table has this member: for those that later editions add. */
#define FPSTATE_API_HAS(api, member) \
    ((api)->size >= offsetof(fpstate_api, member) + sizeof(((const fpstate_api *)0)->member))

/* 1 where a program that was built with this header may use the table. */
static inline int fpstate_api_fits(const fpstate_api *api)
{
    return api && api->version == FPSTATE_API_VERSION && FPSTATE_API_HAS(api, park);
}

#ifdef __cplusplus
}
#endif

#ifdef FPSTATE_WITH_PYTHON
#include <Python.h>

/* The table, or NULL with ImportError set: fpstate is not there, or does not fit this header. Needs the GIL. */
static inline const fpstate_api *fpstate_import(void)
{
    PyObject *module = PyImport_ImportModule("fpstate._core");
    PyObject *capsule = module ? PyObject_GetAttrString(module, "fpstate_c_api") : NULL;
    const fpstate_api *api = capsule ? (const fpstate_api *)PyCapsule_GetPointer(capsule, FPSTATE_API_NAME) : NULL;
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    if (!api || fpstate_api_fits(api))
        return api;
    PyErr_Format(PyExc_ImportError,
                 "fpstate's C interface has version %u and %u bytes; this module was built for version %u and %u bytes",
                 (unsigned)api->version, (unsigned)api->size, FPSTATE_API_VERSION, (unsigned)sizeof *api);
    return NULL;
}
#endif

#endif /* FPSTATE_H */
