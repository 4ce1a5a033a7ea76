/* Reverse rules of shape operations: each is undone by another one. */
#include "autograd/vjp.h"

#include "ops/check.h"

void tpi_vjp_reshape(tpi_vjp *call) {
    const tp_lazy *x = tpi_vjp_like(call, 0);
    call->dx[0] = tp_lazy_reshape(call->dy, x->record.rank, tpi_node_shape(x));
}

/* (a·b)ᵀ = bᵀ·aᵀ: a weight's gradient by the view that a layer reads, made in the order of the weight itself.
 * The product that it replaces is needed by nobody then. */
static tp_lazy *transposed_product(tp_lazy *product) {
    const tp_lazy *a = tpi_node_input(product, 0), *b = tpi_node_input(product, 1);
    if (a->record.rank != 2 || b->record.rank != 2) return NULL;
    const tpi_attr_matmul *attr = tpi_node_attr(product);
    return tpi_lazy_product(tp_lazy_transpose(tpi_node_input(product, 1), 0, 1),
                            tp_lazy_transpose(tpi_node_input(product, 0), 0, 1), tp_lazy_dtype(product),
                            attr ? attr->scale : 1.0);
}

void tpi_vjp_permute(tpi_vjp *call) {
    const tpi_attr_permute *attr = tpi_vjp_attr(call);
    const bool swaps = call->node->record.rank == 2 && attr->dims[0] == 1;
    if (swaps && call->dy->record.op == TPI_MATMUL && (call->dx[0] = transposed_product(call->dy))) return;
    int inverse[TP_MAX_RANK];
    for (int d = 0; d < call->node->record.rank; d++) inverse[attr->dims[d]] = d;
    call->dx[0] = tp_lazy_permute(call->dy, inverse);
}

void tpi_vjp_slice(tpi_vjp *call) {
    const tpi_attr_range *attr = tpi_vjp_attr(call);
    int64_t size = tpi_node_shape(tpi_vjp_like(call, 0))[attr->dim];
    call->dx[0] = tp_lazy_pad(call->dy, (int)attr->dim, attr->begin, size - attr->end);
}

void tpi_vjp_pad(tpi_vjp *call) {
    const tpi_attr_range *attr = tpi_vjp_attr(call);
    int64_t size = tpi_node_shape(tpi_vjp_like(call, 0))[attr->dim];
    call->dx[0] = tp_lazy_slice(call->dy, (int)attr->dim, attr->begin, attr->begin + size);
}

void tpi_vjp_broadcast(tpi_vjp *call) {
    call->dx[0] = tpi_unbroadcast(call->dy, tpi_vjp_like(call, 0));
}

void tpi_vjp_concat(tpi_vjp *call) {
    const tpi_attr_dim *attr = tpi_vjp_attr(call);
    int64_t begin = 0;
    for (int k = 0; k < call->node->record.n_in; k++) {
        int64_t end = begin + tpi_node_shape(tpi_vjp_like(call, k))[attr->dim];
        if (call->wanted[k]) call->dx[k] = tp_lazy_slice(call->dy, (int)attr->dim, begin, end);
        begin = end;
    }
}

void tpi_vjp_gather(tpi_vjp *call) {
    const tp_lazy *table = tpi_vjp_like(call, 0);
    tp_lazy *zeros = tp_lazy_zeros(table->graph, table->device, tp_lazy_dtype(table), table->record.rank,
                                   tpi_node_shape(table));
    call->dx[0] = tp_lazy_scatter_add(zeros, tpi_vjp_in(call, 1), call->dy);
}

void tpi_vjp_scatter_add(tpi_vjp *call) {
    call->dx[0] = call->dy;
    if (call->wanted[2]) call->dx[2] = tp_lazy_gather(call->dy, tpi_vjp_in(call, 1));
}

void tpi_vjp_to_device(tpi_vjp *call) {
    call->dx[0] = tp_lazy_to_device(call->dy, tpi_vjp_like(call, 0)->device);
}
