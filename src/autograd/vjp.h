/* Reverse rules (vector-Jacobian products), one an operation, recorded in the same graph.
 *
 * A rule gets the gradient of the operation's output 0 (further outputs serve the rules alone and have none)
 * and a mask of wanted inputs, and sets dx[k] for those it can give; each has input k's shape and dtype. It
 * reads the forward pass through tpi_vjp_in and tpi_vjp_out alone, and only what its line in ops.def says it
 * saves. Recording errors stick in the graph, so a rule needs no checks: a NULL operand gives NULL. */
#ifndef TAPER_AUTOGRAD_VJP_H
#define TAPER_AUTOGRAD_VJP_H

#include "graph/node.h"

#include <string.h>

struct tpi_vjp {
    tp_lazy *node;
    tp_lazy *dy;        /* the gradient of output 0 */
    const bool *wanted; /* n_in flags */
    tp_lazy **dx;       /* n_in results, NULL before */
    struct tpi_reverse *reverse;
};

tp_lazy *tpi_vjp_in(tpi_vjp *call, int k);  /* the forward input (computed again in a recompute segment) */
tp_lazy *tpi_vjp_out(tpi_vjp *call, int k); /* the forward output, likewise */
const void *tpi_vjp_attr(const tpi_vjp *call);

/* Input k for its shape and dtype alone, which are known without its value. */
const tp_lazy *tpi_vjp_like(const tpi_vjp *call, int k);

/* `gradient` summed over the dimensions along which `input` was broadcast: the input's shape and dtype. */
tp_lazy *tpi_unbroadcast(tp_lazy *gradient, const tp_lazy *input);

/* x · s; x itself for s = 1. */
tp_lazy *tpi_scaled(tp_lazy *x, double s);

static inline bool tpi_vjp_same_shape(const tp_lazy *a, const tp_lazy *b) {
    return a->record.rank == b->record.rank &&
           memcmp(tpi_node_shape(a), tpi_node_shape(b), a->record.rank * sizeof(int64_t)) == 0;
}

/* dy · x, of one shape. Where dy is one known number, as below a sum or a mean, that number scales x: no
 * gradient of equal elements is written and read. */
tp_lazy *tpi_times(tp_lazy *dy, tp_lazy *x);

/* One element of x's dtype, to be broadcast. */
tp_lazy *tpi_constant(const tp_lazy *x, double value);

#endif
