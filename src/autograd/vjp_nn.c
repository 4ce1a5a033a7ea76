/* Reverse rules of transformer layers: each has a gradient operation of its own, or is its own inverse. */
#include "autograd/vjp.h"

#include "ops/check.h"

#include <string.h>

/* The gradient operation takes (x, dy, weight) and gives dx, then one output a vector of the forward's. */
static void give_norm(tpi_vjp *call, tpi_op grad_op) {
    const tpi_attr_norm *attr = tpi_vjp_attr(call);
    int n_in = call->node->record.n_in;
    tp_lazy *inputs[3] = {tpi_vjp_in(call, 0), call->dy, n_in > 1 ? tpi_vjp_in(call, 1) : NULL};
    tp_lazy *gradient = TPI_RECORD(grad_op, inputs, n_in > 1 ? 3 : 2, *attr);
    call->dx[0] = gradient;
    for (int k = 1; k < n_in; k++)
        if (call->wanted[k]) call->dx[k] = tpi_record_part(gradient, k);
}

void tpi_vjp_rms_norm(tpi_vjp *call) {
    give_norm(call, TPI_RMS_NORM_GRAD);
}
void tpi_vjp_layer_norm(tpi_vjp *call) {
    give_norm(call, TPI_LAYER_NORM_GRAD);
}

/* A rotation is undone by the opposite one. */
void tpi_vjp_rope(tpi_vjp *call) {
    const tpi_attr_rope *forward = tpi_vjp_attr(call);
    const tpi_attr_rope attr = {forward->layout, !forward->inverse};
    if (call->wanted[0])
        call->dx[0] = tpi_lazy_rope(call->dy, tpi_vjp_in(call, 1), tpi_vjp_in(call, 2), attr);
}

/* q, k and v; a mask is a constant, asking for its gradient is an error of the walk. */
void tpi_vjp_attention(tpi_vjp *call) {
    const tpi_attr_attention *attr = tpi_vjp_attr(call);
    int n_in = call->node->record.n_in;
    tp_lazy *inputs[9];
    for (int k = 0; k < n_in; k++) inputs[k < 3 ? k : k + 3] = tpi_vjp_in(call, k);
    inputs[3] = tpi_vjp_out(call, 0);
    inputs[4] = tpi_vjp_out(call, 1);
    inputs[5] = call->dy;
    tp_lazy *gradient = TPI_RECORD(TPI_ATTENTION_GRAD, inputs, n_in + 3, *attr);
    call->dx[0] = gradient;
    for (int k = 1; k < 3; k++)
        if (call->wanted[k]) call->dx[k] = tpi_record_part(gradient, k);
}

void tpi_vjp_cross_entropy(tpi_vjp *call) {
    const tpi_attr_ignore *attr = tpi_vjp_attr(call);
    tp_lazy *inputs[] = {tpi_vjp_in(call, 0), tpi_vjp_in(call, 1), tpi_vjp_out(call, 1), call->dy};
    call->dx[0] = TPI_RECORD(TPI_CROSS_ENTROPY_GRAD, inputs, 4, *attr);
}

/* The forward pass leaves each loss's gradient by its row of h, which dloss scales; w's takes the logits
 * again. */
void tpi_vjp_linear_cross_entropy(tpi_vjp *call) {
    const tpi_attr_ignore *attr = tpi_vjp_attr(call);
    const tp_lazy *h = tpi_vjp_like(call, 0), *w = tpi_vjp_like(call, 1);
    if (call->wanted[0]) {
        int64_t column[TP_MAX_RANK];
        memcpy(column, tpi_node_shape(h), h->record.rank * sizeof *column);
        column[h->record.rank - 1] = 1;
        tp_lazy *scale = tp_lazy_reshape(call->dy, h->record.rank, column);
        call->dx[0] = tp_lazy_cast(tp_lazy_mul(tpi_vjp_out(call, 2), scale), tp_lazy_dtype(h));
    }
    if (!call->wanted[1]) return;
    tp_lazy *inputs[] = {tpi_vjp_in(call, 0), tpi_vjp_in(call, 1), tpi_vjp_in(call, 2), tpi_vjp_out(call, 1),
                         call->dy};
    tp_lazy *dw = TPI_RECORD(TPI_LINEAR_CROSS_ENTROPY_GRAD, inputs, 5, *attr);
    call->dx[1] = tp_lazy_cast(dw, tp_lazy_dtype(w));
}

/* The same mask, drawn again from the same counters. */
void tpi_vjp_dropout(tpi_vjp *call) {
    const tpi_attr_dropout *attr = tpi_vjp_attr(call);
    call->dx[0] = TPI_RECORD(TPI_DROPOUT, ((tp_lazy *[]){call->dy, tpi_vjp_in(call, 1)}), 2, *attr);
}
