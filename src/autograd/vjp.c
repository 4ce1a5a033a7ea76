/* What reverse rules share. */
#include "autograd/vjp.h"
#include "autograd/reverse.h"

#include "ops/check.h"

#include <string.h>

tp_lazy *tpi_vjp_in(tpi_vjp *call, int k) {
    return tpi_reverse_read(call->reverse, call->node, tpi_node_input(call->node, k));
}

tp_lazy *tpi_vjp_out(tpi_vjp *call, int k) {
    tp_lazy *output = tpi_reverse_read(call->reverse, call->node, call->node);
    return k == 0 ? output : tpi_record_part(output, k);
}

const void *tpi_vjp_attr(const tpi_vjp *call) {
    return tpi_node_attr(call->node);
}

const tp_lazy *tpi_vjp_like(const tpi_vjp *call, int k) {
    return tpi_node_input(call->node, k);
}

tp_lazy *tpi_unbroadcast(tp_lazy *gradient, const tp_lazy *input) {
    if (!gradient) return NULL;
    int rank = input->record.rank, lead = gradient->record.rank - rank;
    uint32_t dims = 0;
    for (int d = 0; d < gradient->record.rank; d++) {
        bool broadcast = d < lead || tpi_node_shape(input)[d - lead] == 1;
        if (broadcast && tpi_node_shape(gradient)[d] != 1) dims |= 1u << d;
    }
    tp_dtype dtype = tp_lazy_dtype(input);
    if (dims) {
        if (tp_lazy_dtype(gradient) != dtype) gradient = tp_lazy_cast(gradient, TP_F32);
        gradient = tpi_lazy_sum_dims(gradient, dims, lead == 0);
    }
    return tp_lazy_cast(tp_lazy_reshape(gradient, rank, tpi_node_shape(input)), dtype);
}

tp_lazy *tpi_scaled(tp_lazy *x, double s) {
    return s == 1.0 ? x : tp_lazy_mul_scalar(x, s);
}

/* Whether all elements of x are one number: a fill, seen through broadcasts, reshapes and scalings. */
static bool known(const tp_lazy *x, double *value) {
    for (*value = 1.0;; x = tpi_node_input(x, 0)) {
        if (x->record.op == TPI_MUL_SCALAR)
            *value *= ((const tpi_attr_scalar *)tpi_node_attr(x))->s;
        else if (x->record.op == TPI_FILL)
            return *value *= ((const tpi_attr_fill *)tpi_node_attr(x))->value, true;
        else if (x->record.op != TPI_BROADCAST && x->record.op != TPI_RESHAPE)
            return false;
    }
}

tp_lazy *tpi_times(tp_lazy *dy, tp_lazy *x) {
    double value;
    bool alike = dy && x && dy->record.dtype == x->record.dtype && tpi_vjp_same_shape(dy, x);
    return alike && known(dy, &value) ? tpi_scaled(x, value) : tp_lazy_mul(dy, x);
}

tp_lazy *tpi_constant(const tp_lazy *x, double value) {
    return x ? tp_lazy_full(tp_lazy_graph(x), tp_lazy_device(x), tp_lazy_dtype(x), 0, NULL, value) : NULL;
}
