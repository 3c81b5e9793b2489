/* Stop threads of other processes, read or write their extended state, and let them go.
 *
 * Facts from ptrace(2) and kernel/ptrace.c, kernel/signal.c, kernel/exit.c of Linux 6. */
#include "tracer.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__GLIBC__) && defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 30)
#define HAVE_SEM_CLOCKWAIT
#endif
#endif

enum { PAUSE_NS = 20000, IDLE_SWEEPS = 50, ROUNDS_MAX = 64, NS_A_SECOND = 1000000000, NICEST = -20 };

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int fail(struct tracee *tracee, int error)
{
    tracee->state = TRACEE_FAILED;
    tracee->error = error;
    return -1;
}

/* The state letter of /proc/PID/task/TID/stat; 'X' where there is no such thread. */
static char state_letter(const struct tracing *tracing, pid_t tid)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", tracing->only_one ? tid : tracing->pid, tid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 'X';
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    const char *end = strrchr(text, ')'); /* a name may hold any character, so the last one counts */
    return end && end[1] == ' ' && end[2] ? end[2] : 'X';
}

static bool has_ended(const struct tracing *tracing, pid_t tid)
{
    char state = state_letter(tracing, tid);
    return state == 'Z' || state == 'X';
}

/* Listings repeat their order, so the search goes on where the last one ended. */
static struct tracee *find(struct tracing *tracing, pid_t tid, size_t *cursor)
{
    for (size_t i = 0; i < tracing->count; i++) {
        size_t at = (*cursor + i) % tracing->count;
        if (tracing->tracees[at].tid == tid) {
            *cursor = at + 1;
            return &tracing->tracees[at];
        }
    }
    return NULL;
}

static int add(struct tracing *tracing, pid_t tid)
{
    if (tracing->count == tracing->room) {
        size_t room = tracing->room ? 2 * tracing->room : 64;
        struct tracee *grown = realloc(tracing->tracees, room * sizeof *grown);
        if (!grown)
            return ENOMEM;
        tracing->tracees = grown;
        tracing->room = room;
    }
    unsigned char *image = calloc(1, tracing->capacity);
    if (!image)
        return ENOMEM;
    tracing->tracees[tracing->count++] = (struct tracee){.tid = tid, .image = image};
    return 0;
}

/* Add the threads that are not known yet; returns how many, or -1 with an error noted. */
static ssize_t enlist(struct tracing *tracing)
{
    size_t before = tracing->count, cursor = 0;
    if (tracing->only_one) {
        tracing->error = before ? 0 : add(tracing, tracing->pid);
        return tracing->error ? -1 : (ssize_t)(tracing->count - before);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", tracing->pid);
    DIR *folder = opendir(path);
    if (!folder) {
        tracing->error = before ? 0 : errno == ENOENT ? ESRCH : errno; /* it may have ended since */
        return before ? 0 : -1;
    }
    const struct dirent *entry;
    while (!tracing->error && (entry = readdir(folder))) {
        pid_t tid = atoi(entry->d_name);
        if (tid > 0 && !find(tracing, tid, &cursor))
            tracing->error = add(tracing, tid);
    }
    closedir(folder);
    return tracing->error ? -1 : (ssize_t)(tracing->count - before);
}

/* Seizing does not stop a thread yet, so all are seized before the first is asked to stop. */
static void seize(const struct tracing *tracing, struct tracee *tracee)
{
    if (ptrace(PTRACE_SEIZE, tracee->tid, NULL, NULL) == 0) {
        tracee->state = TRACEE_SEIZED;
        return;
    }
    int error = errno;
    /* Dead and half-dead threads, such as a leader that has left the others behind, answer EPERM too. */
    if (error == ESRCH || (error == EPERM && has_ended(tracing, tracee->tid)))
        tracee->state = TRACEE_ENDED;
    else
        fail(tracee, error);
}

static void interrupt(struct tracee *tracee)
{
    tracee->asked_ns = now_ns();
    if (tracee->state == TRACEE_SEIZED && ptrace(PTRACE_INTERRUPT, tracee->tid, NULL, NULL) && errno == ESRCH)
        tracee->state = TRACEE_ENDED;
}

/* Ask about one thread. The answer is left where it is (WNOWAIT): should this process be killed now, a signal that
 * waits for its delivery is delivered all the same, since the kernel still has its number. */
static bool ask(struct tracee *tracee)
{
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)tracee->tid, &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT | __WALL)) {
        if (errno == ECHILD)
            tracee->state = TRACEE_ENDED;
        return errno == ECHILD;
    }
    if (info.si_pid == 0)
        return false;
    if (info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED) {
        tracee->state = TRACEE_ENDED;
        return true;
    }
    tracee->state = TRACEE_STOPPED;
    /* PTRACE_EVENT_STOP stands above the signal number for our interrupt and for group stops: nothing to deliver. */
    tracee->signal = info.si_status >> 8 ? 0 : info.si_status;
    return true;
}

static void read_state(const struct tracing *tracing, struct tracee *tracee)
{
    struct iovec io = {tracee->image, tracing->capacity};
    if (ptrace(PTRACE_GETREGSET, tracee->tid, (void *)NT_X86_XSTATE, &io) == 0)
        tracee->length = io.iov_len;
    else if (errno == ESRCH) /* killed while it was stopped */
        tracee->state = TRACEE_ENDED;
    else
        tracee->error = errno; /* it is still to be released */
}

/* Wait until every thread has stopped or ended, and read each as it stops. */
static void await(struct tracing *tracing, int64_t deadline)
{
    for (unsigned idle = 0;;) {
        size_t waiting = 0;
        bool progress = false;
        for (size_t i = 0; i < tracing->count; i++) {
            struct tracee *tracee = &tracing->tracees[i];
            if (tracee->state != TRACEE_SEIZED)
                continue;
            /* A leader's end is told with the last thread's only. */
            if (!ask(tracee) && idle >= IDLE_SWEEPS && has_ended(tracing, tracee->tid))
                tracee->state = TRACEE_ENDED;
            if (tracee->state == TRACEE_STOPPED)
                read_state(tracing, tracee);
            waiting += tracee->state == TRACEE_SEIZED;
            progress |= tracee->state != TRACEE_SEIZED;
        }
        if (!waiting || now_ns() >= deadline)
            return;
        idle = progress ? 0 : idle >= IDLE_SWEEPS ? 1 : idle + 1;
        if (!progress)
            nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    }
}

/* Wait until the caller is done. Not by CLOCK_REALTIME: who sets the clock back would keep the thread standing. */
static int await_edit(struct tracing *tracing)
{
    int64_t until = now_ns() + tracing->limit_ns + NS_A_SECOND;
#ifdef HAVE_SEM_CLOCKWAIT
    struct timespec time = {until / NS_A_SECOND, until % NS_A_SECOND};
    return sem_clockwait(&tracing->edited, CLOCK_MONOTONIC, &time);
#else
    while (sem_trywait(&tracing->edited)) {
        if (now_ns() >= until)
            return -1;
        nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    }
    return 0;
#endif
}

/* Let the caller make a new image, for no longer than the limit, and write it. */
static void write_state(struct tracing *tracing, struct tracee *tracee)
{
    sem_post(&tracing->stopped);
    if (await_edit(tracing)) {
        tracee->error = ETIMEDOUT;
        return;
    }
    if (!tracing->write)
        return;
    struct iovec io = {tracee->image, tracee->length};
    if (ptrace(PTRACE_SETREGSET, tracee->tid, (void *)NT_X86_XSTATE, &io)) {
        tracee->error = errno;
        return;
    }
    tracing->written = true;
    io = (struct iovec){tracing->after, tracing->capacity};
    if (ptrace(PTRACE_GETREGSET, tracee->tid, (void *)NT_X86_XSTATE, &io))
        tracee->error = errno;
    else
        tracing->after_length = io.iov_len;
}

static void release(struct tracing *tracing, struct tracee *tracee)
{
    if (tracee->state == TRACEE_STOPPED) {
        ptrace(PTRACE_DETACH, tracee->tid, NULL, (void *)(long)tracee->signal);
        int64_t stood_ns = now_ns() - tracee->asked_ns;
        if (stood_ns > tracing->longest_ns)
            tracing->longest_ns = stood_ns;
        if (tracee->error)
            tracee->state = TRACEE_FAILED;
    } else if (tracee->state == TRACEE_SEIZED) {
        fail(tracee, ETIMEDOUT); /* the end of this process releases it */
    }
}

static void read_name(const struct tracing *tracing, struct tracee *tracee)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task/%d/comm", tracing->pid, tracee->tid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    ssize_t length = read(file, tracee->name, sizeof tracee->name - 1);
    close(file);
    tracee->name[length > 0 ? length - 1 : 0] = 0; /* without the line's end */
}

bool tracing_can_edit(const struct tracing *tracing)
{
    return tracing->edit && tracing->count && tracing->tracees->state == TRACEE_STOPPED && !tracing->tracees->error;
}

/* The tracees stand still until this process is done, so it goes first, where it may. */
static void hurry(void)
{
    setpriority(PRIO_PROCESS, 0, NICEST);
    prctl(PR_SET_TIMERSLACK, 1ul); /* pauses are as short as they say */
}

int tracing_trace(void *data)
{
    struct tracing *tracing = data;
    int64_t start = now_ns(), deadline = start + tracing->limit_ns;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* should this process be killed: release everything at once */
    if (getppid() != tracing->caller) /* it was, before anything could be told */
        _exit(1);
    hurry();
    /* A thread that runs can make another: list until all that are known stand still and there is no new one. */
    for (int round = 0; round < ROUNDS_MAX && (round == 0 || now_ns() < deadline); round++) {
        size_t known = tracing->count;
        if (enlist(tracing) <= 0)
            break;
        for (size_t i = known; i < tracing->count; i++)
            seize(tracing, &tracing->tracees[i]);
        if (round == 0)
            start = now_ns();
        for (size_t i = known; i < tracing->count; i++)
            interrupt(&tracing->tracees[i]);
        await(tracing, deadline);
    }
    if (tracing_can_edit(tracing))
        write_state(tracing, tracing->tracees);
    for (size_t i = 0; i < tracing->count; i++)
        release(tracing, &tracing->tracees[i]); /* in the order in which they stopped */
    tracing->stop_ns = now_ns() - start;
    for (size_t i = 0; i < tracing->count; i++)
        read_name(tracing, &tracing->tracees[i]);
    return 0;
}
