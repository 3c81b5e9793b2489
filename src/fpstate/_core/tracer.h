/* The extended state of other processes' threads, by ptrace; no Python here.
 *
 * Everything happens on a thread of its own: the kernel releases all that a thread traces when that thread ends,
 * however it ends (exit_ptrace), so nothing stays stopped or traced. */
#ifndef FPSTATE_TRACER_H
#define FPSTATE_TRACER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum tracee_state { TRACEE_FRESH, TRACEE_SEIZED, TRACEE_STOPPED, TRACEE_ENDED, TRACEE_FAILED };

struct tracee {
    pid_t tid;
    enum tracee_state state;
    int error;  /* errno, where it failed; ETIMEDOUT: it did not stop in time */
    int64_t asked_ns; /* when it was asked to stop */
    int signal; /* one that was about to be delivered, and is when it goes on */
    size_t length;
    unsigned char *image;
};

struct tracing {
    pid_t pid;        /* of the process, all of whose threads are wanted, or of one thread */
    bool only_one;    /* that thread alone */
    size_t capacity;  /* bytes to ask for; a multiple of 8 */
    int64_t limit_ns; /* give up on what has not stopped by then */
    struct tracee *tracees;
    size_t count, room;
    int error;        /* errno, where the threads cannot be listed */
    int64_t stop_ns;  /* from the first request to stop to the last release */
    int64_t longest_ns; /* the longest that one thread stood still: from its request to its release */
    /* Called while the one thread is stopped and its image is read: change the image and return true to write it. */
    bool (*edit)(struct tracing *tracing, struct tracee *tracee);
    void *edit_data;
    unsigned char *after; /* what is read back after that: capacity bytes */
    size_t after_length;
    bool written;
    pid_t tracer; /* the thread that did it */
};

/* Do it. Returns 0, or an errno where there is no thread or memory to do it with. */
int tracing_run(struct tracing *tracing);
void tracing_deinit(struct tracing *tracing); /* wipes the images */

#endif
