/* Runs: a plan with its pointers, on this thread or on the queue.
 *
 * Invariant: `bases` holds the leaves' addresses, then the result buffers'; slots has room for the plan's. */
#ifndef TAPER_GRAPH_RUN_H
#define TAPER_GRAPH_RUN_H

#include "graph/plan.h"

typedef struct tpi_run {
    tp_context *context;
    tpi_plan *plan;
    void **bases; /* leaves, then result buffers */
    void **slots;
    void *arena;      /* of the last run */
    uint64_t binding; /* of the slots to the bases and the arena, another each time; 0: not bound */
    uint64_t mark;    /* where the last run ends in the order of a device that has one */
} tpi_run;

/* Takes the arena, binds the slots where they are not bound to it, runs the steps, gives the arena back. On a
 * device with its own order the steps are queued when it returns. */
tp_status tpi_run_now(tpi_run *run);

/* ---- queue.c ---- */

typedef struct tpi_queue tpi_queue;

/* An evaluation on the queue: retains the plan and the storages it uses. */
typedef struct tpi_job {
    tpi_run run;
    tp_event *event;
    uint64_t mark; /* on a device with its own order: what the job waits for; its run is queued already */
    tpi_storage **storages; /* owned references: the leaves', then the result buffers' */
    size_t n_storages;
    struct tpi_job *next;
} tpi_job;

tp_status tpi_queue_create(tpi_queue **out);
void tpi_queue_destroy(tpi_queue *queue); /* runs what is queued first */

/* To be called before a push: starts the thread, at the first time. */
tp_status tpi_queue_start(tpi_queue *queue);

/* Takes over the job, one block from tpi_malloc. */
void tpi_queue_push(tpi_queue *queue, tpi_job *job);

/* Returns when everything queued before has ended; at once in a callback, which is behind its own job. */
void tpi_queue_drain(tpi_queue *queue);

#endif
