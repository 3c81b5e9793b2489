/* A peer: a program that measures when it is told to.
 *
 * Each line of standard input asks for one sample; it is answered by a line with the nanoseconds of one switch, in processor time. So the
 * one who asks can let several peers take turns. */
#ifndef PEER_H
#define PEER_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define FAIL_UNLESS(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static double now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

/* void switches(unsigned long count): switch away and back, count switches in all */
static inline int serve(void (*switches)(unsigned long), unsigned long count)
{
    char line[64];
    switches(count / 10 + 2);
    while (fgets(line, sizeof line, stdin)) {
        double start = now_ns();
        switches(count);
        printf("%.4f\n", (now_ns() - start) / (double)count);
        fflush(stdout);
    }
    return 0;
}

#endif
