/* Evaluations: a plan with the tensors of its leaves, and the results that one run of it makes. What graphs
 * and programs have in common.
 *
 * Invariant: all or nothing. Until a run or its queueing succeeded there is no result and no new version of
 * state. */
#ifndef TAPER_GRAPH_EVALUATION_H
#define TAPER_GRAPH_EVALUATION_H

#include "graph/run.h"

typedef struct tpi_evaluation {
    tpi_run run;         /* the plan is borrowed */
    tp_tensor **leaves;  /* one for each leaf of the plan; borrowed */
    tpi_storage **fresh; /* one for each result buffer; owned */
    tp_tensor **results; /* one for each output; owned */
    bool settled;        /* see tpi_evaluation_settle */
    /* What is assigned, borrowed: if it is settled whole groups, and states of others, each once; else
     * states, one for each assignment. */
    tpi_state_group **groups;
    tpi_storage **states;
    uint32_t n_groups, n_states;
} tpi_evaluation;

/* How many pointers an evaluation of the plan is laid out in. */
size_t tpi_evaluation_pointers(const tpi_plan *plan);

/* Lays an evaluation out, without results; the leaves are the caller's to fill in. */
void tpi_evaluation_init(tpi_evaluation *e, tp_context *ctx, tpi_plan *plan, void **pointers);

/* For leaves that stay: waits for what may still make one of them, fails as it did, takes their addresses and
 * groups those that are assigned. Runs ask no leaf any more. */
tp_status tpi_evaluation_settle(tpi_evaluation *e);

/* Makes the results and runs, behind what was queued before, or puts the run on the context's queue, where
 * `event` may be NULL and is owned. Where this fails, with TP_ELIMIT for one, nothing has changed. On a
 * device with its own order a run is queued in any case. */
tp_status tpi_evaluation_perform(tpi_evaluation *e, bool queued, tp_event **event);

/* To be called after a run of one that is settled: what it assigns has another version now. */
void tpi_evaluation_advance(const tpi_evaluation *e);

/* Releases the results that nobody took; the evaluation can be performed again. */
void tpi_evaluation_discard(tpi_evaluation *e);

#endif
