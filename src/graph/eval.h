/* Finding the plan of a recording, for evaluations and for programs. */
#ifndef TAPER_GRAPH_EVAL_H
#define TAPER_GRAPH_EVAL_H

#include "graph/plan.h"

/* The plan of `outputs` and the pending assignments, and the walk that led to it: plan->leaves are places in
 * order->nodes. Both are the graph's until its next walk. Fails with the graph's sticky error, for outputs
 * that are not its own or on several devices, TP_ESTALE. Copies from other devices are left to the caller:
 * where order->crosses, *plan is NULL. */
tp_status tpi_find_plan(tp_graph *graph, tp_lazy *const *outputs, int n, tpi_order *order, tpi_plan **plan);

#endif
