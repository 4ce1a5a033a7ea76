/* Tasks for the threads: each is done by the thread that is free. Tasks write what no other does, so who does
 * which changes no result. */
#ifndef TAPER_SIMD_TASKS_H
#define TAPER_SIMD_TASKS_H

#include "core/threads.h"

#include <stdatomic.h>

typedef void task_fn(const void *job, int64_t i, int thread);

typedef struct task_queue {
    atomic_llong next;
    int64_t count;
    task_fn *task;
    const void *job;
} task_queue;

static inline void drain(void *arg, int index, int threads) {
    (void)threads;
    task_queue *queue = arg;
    for (int64_t i; (i = atomic_fetch_add(&queue->next, 1)) < queue->count;)
        queue->task(queue->job, i, index);
}

/* Runs task(job, i, thread) for i < count; in the calling thread, as thread 0, if `threads` is NULL. */
static inline void run_tasks(tpi_threads *threads, int64_t count, task_fn *task, const void *job) {
    task_queue queue = {.count = count, .task = task, .job = job};
    atomic_init(&queue.next, 0);
    if (!threads || count <= 1)
        drain(&queue, 0, 1);
    else
        tpi_parallel(threads, drain, &queue);
}

#endif
