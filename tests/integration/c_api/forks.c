/* Forks in the midst of other threads' creating and destroying: the child goes on, or hangs on a lock that nobody holds. */
#include "fpstate.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 2, CHILD_SECONDS = 5 };

struct churn {
    const fpstate_api *api;
    atomic_bool ended;
};

static int one_life(const fpstate_api *api)
{
    fpstate_context *context;
    if (api->create(&context))
        return 1;
    int error = api->save(context) || api->park(context);
    api->destroy(context);
    return error;
}

static void *live(void *argument)
{
    struct churn *churn = argument;
    while (!atomic_load(&churn->ended))
        one_life(churn->api);
    return NULL;
}

static int child_goes_on(const fpstate_api *api)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGALRM, SIG_DFL);
        alarm(CHILD_SECONDS);
        _exit(one_life(api));
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* How many forks there were until a child hung: ``forks`` where none did. */
int forks_survived(const fpstate_api *api, int forks);
int forks_survived(const fpstate_api *api, int forks)
{
    struct churn churn = {.api = api};
    pthread_t threads[THREADS];
    int survived = 0, started = 0;
    while (started < THREADS && !pthread_create(&threads[started], NULL, live, &churn))
        started++;
    while (survived < forks && child_goes_on(api))
        survived++;
    atomic_store(&churn.ended, 1);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    return started == THREADS ? survived : -1;
}
