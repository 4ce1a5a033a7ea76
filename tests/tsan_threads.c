/* The pool under the thread sanitizer, without a test runner: jobs write plain memory that the caller reads
 * after the join, with workers awake and asleep, from several callers at once, and with more threads than
 * processors. */
#include "core/threads.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#define MOST 16

static void tick(void *arg, int index, int count) {
    long *calls = arg;
    (void)count;
    calls[index]++;
}

/* 0 if each index ran once in each job. */
static int run_jobs(tpi_threads *pool, int jobs) {
    long calls[MOST] = {0};
    int wrong = 0;
    for (long j = 1; j <= jobs; j++) {
        tpi_parallel(pool, tick, calls);
        for (int i = 0; i < tpi_threads_parts(pool); i++) wrong += calls[i] != j;
        if (j % 50 == 0) usleep(300); /* long enough for the workers to fall asleep */
    }
    return wrong;
}

static void *call_concurrently(void *pool) {
    return run_jobs(pool, 500) ? pool : NULL;
}

static int run_pool(int threads, int parts) {
    tpi_threads *pool;
    pthread_t callers[3];
    void *failed;
    if (tpi_threads_create_split(&pool, threads, parts) != TP_OK) return 1;
    int wrong = run_jobs(pool, 500);
    for (int i = 0; i < 3; i++)
        if (pthread_create(&callers[i], NULL, call_concurrently, pool)) return 1;
    for (int i = 0; i < 3; i++) {
        pthread_join(callers[i], &failed);
        wrong += failed != NULL;
    }
    tpi_threads_destroy(pool);
    return wrong;
}

int main(void) {
    int wrong = 0;
    for (int count = 1; count <= MOST; count *= 2) wrong += run_pool(count, count);
    for (int count = 2; count <= MOST; count *= 2) wrong += run_pool(count, MOST);
    printf("%d jobs went wrong\n", wrong);
    return wrong != 0;
}
