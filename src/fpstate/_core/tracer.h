/* The extended state of other processes' threads, by ptrace; no Python here.
 *
 * A short-lived process that shares this one's memory does the tracing. However it ends, the kernel then releases all
 * that it traced (exit_ptrace); a SIGSTOP for this process does not reach it; and no wait() of another thread here
 * gets to see its tracees' stops. So nothing stays stopped or traced, and nobody notices. */
#ifndef FPSTATE_TRACER_H
#define FPSTATE_TRACER_H

#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { NAME_SIZE = 64 };

enum tracee_state { TRACEE_FRESH, TRACEE_SEIZED, TRACEE_STOPPED, TRACEE_ENDED, TRACEE_FAILED };

struct tracee {
    pid_t tid;
    enum tracee_state state;
    int error;  /* errno, where it failed; ETIMEDOUT: it did not stop in time */
    int64_t asked_ns; /* when it was asked to stop */
    int signal; /* one that was about to be delivered, and is when it goes on */
    size_t length;
    unsigned char *image;
    char name[NAME_SIZE]; /* as it is after the release; empty where it has ended by then */
};

struct tracing {
    pid_t caller;     /* the process that traces by another */
    pid_t pid;        /* of the process, all of whose threads are wanted, or of one thread */
    bool only_one;    /* that thread alone */
    size_t capacity;  /* bytes to ask for; a multiple of 8 */
    int64_t limit_ns; /* give up on what has not stopped by then */
    struct tracee *tracees;
    size_t count, room;
    int error;        /* errno, where the threads cannot be listed */
    int64_t stop_ns;  /* from the first request to stop to the last release */
    int64_t longest_ns; /* the longest that one thread stood still: from its request to its release */
    /* Called on the caller's thread, while the one tracee is stopped and its image is read: change the image and return
     * true to write it. Within the limit and a second; later the tracee has gone on and nothing is written. */
    bool (*edit)(struct tracing *tracing, struct tracee *tracee);
    void *edit_data;
    unsigned char *after; /* what is read back after that: capacity bytes */
    size_t after_length;
    bool write, written;
    sem_t stopped, edited;
};

/* Do it. Returns 0, EPERM for this very process, or the errno where a process cannot be made. */
int tracing_run(struct tracing *tracing);
void tracing_deinit(struct tracing *tracing); /* wipes the images */

/* tracer.c, on the tracing process: stop, read, edit, release. Returns 0, and everything else in the struct. */
int tracing_trace(void *tracing);
bool tracing_can_edit(const struct tracing *tracing); /* the one thread is stopped and read */

#endif
