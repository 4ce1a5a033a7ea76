/* Reverse rules of reductions: the gradient returns to x's shape by broadcasting, which costs no memory. */
#include "autograd/vjp.h"

#include "ops/check.h"

#include <math.h>

/* A reduced value with its dimensions kept as size 1, so that it broadcasts against x. */
static tp_lazy *kept(const tpi_vjp *call, tp_lazy *reduced) {
    const tpi_attr_reduce *attr = tpi_vjp_attr(call);
    const tp_lazy *x = tpi_vjp_like(call, 0);
    int64_t shape[TP_MAX_RANK];
    for (int d = 0; d < x->record.rank; d++) shape[d] = attr->dims >> d & 1u ? 1 : tpi_node_shape(x)[d];
    return tp_lazy_reshape(reduced, x->record.rank, shape);
}

static tp_lazy *expanded(const tpi_vjp *call, tp_lazy *reduced) {
    const tp_lazy *x = tpi_vjp_like(call, 0);
    return tp_lazy_broadcast(kept(call, reduced), x->record.rank, tpi_node_shape(x));
}

void tpi_vjp_sum(tpi_vjp *call) {
    call->dx[0] = expanded(call, call->dy);
}

void tpi_vjp_mean(tpi_vjp *call) {
    const tpi_attr_reduce *attr = tpi_vjp_attr(call);
    const tp_lazy *x = tpi_vjp_like(call, 0);
    double count = 1.0;
    for (int d = 0; d < x->record.rank; d++)
        if (attr->dims >> d & 1u) count *= (double)tpi_node_shape(x)[d];
    call->dx[0] = expanded(call, tpi_scaled(call->dy, count > 0.0 ? 1.0 / count : 1.0));
}

/* Elements that equal the maximum share the gradient. */
void tpi_vjp_max(tpi_vjp *call) {
    const tpi_attr_reduce *attr = tpi_vjp_attr(call);
    tp_lazy *chosen =
        tp_lazy_cast(tp_lazy_compare(tpi_vjp_in(call, 0), kept(call, tpi_vjp_out(call, 0)), TP_EQ),
                     tp_lazy_dtype(call->dy));
    tp_lazy *sharers = tpi_lazy_sum_dims(chosen, attr->dims, true);
    call->dx[0] = tp_lazy_mul(chosen, tp_lazy_div(kept(call, call->dy), sharers));
}

/* dy · exp(x - y); a slice that is all -inf has y = -inf and gives zeros. */
void tpi_vjp_logsumexp(tpi_vjp *call) {
    tp_lazy *y = tpi_vjp_out(call, 0), *zero = tpi_constant(y, 0.0);
    tp_lazy *finite = tp_lazy_where(tp_lazy_compare(y, tpi_constant(y, -(double)INFINITY), TP_NE), y, zero);
    tp_lazy *weights = tp_lazy_exp(tp_lazy_sub(tpi_vjp_in(call, 0), kept(call, finite)));
    call->dx[0] = tp_lazy_mul(kept(call, call->dy), weights);
}

void tpi_vjp_softmax(tpi_vjp *call) {
    const tpi_attr_dim *attr = tpi_vjp_attr(call);
    call->dx[0] = TPI_RECORD(TPI_SOFTMAX_GRAD, ((tp_lazy *[]){tpi_vjp_out(call, 0), call->dy}), 2, *attr);
}

void tpi_vjp_sum_squares(tpi_vjp *call) {
    for (int k = 0; k < call->node->record.n_in; k++) {
        if (!call->wanted[k]) continue;
        tp_lazy *x = tpi_vjp_in(call, k);
        call->dx[k] = tp_lazy_mul(x, tp_lazy_cast(tpi_scaled(call->dy, 2.0), tp_lazy_dtype(x)));
    }
}
