/* One call of tp_graph_grad.
 *
 * Invariants: tables are indexed by a node's ordinal and end with the loss; gradient[id] is complete when the
 * walk reaches `id`, since users have larger ordinals; clone[id] is set at most once. */
#ifndef TAPER_AUTOGRAD_REVERSE_H
#define TAPER_AUTOGRAD_REVERSE_H

#include "graph/graph.h"

typedef struct tpi_reverse {
    tp_graph *graph;
    const tp_lazy *loss;
    tp_lazy **gradient; /* of output 0, NULL: none so far */
    bool *needs;        /* depends on a wanted node through floats */
    tp_lazy **clone;    /* recomputed nodes; NULL until there is one */
    tp_lazy **stack;    /* nodes that wait for the clones of their inputs */
    size_t stack_capacity;
} tpi_reverse;

/* `value` as `reader`'s rule sees it: itself, or its clone if both are in one recompute segment or `value` is
 * quick to make again. */
tp_lazy *tpi_reverse_read(tpi_reverse *reverse, const tp_lazy *reader, tp_lazy *value);

#endif
