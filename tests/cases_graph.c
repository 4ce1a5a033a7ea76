/* Leaves of cases. */
#include "cases_graph.h"

#include <stdlib.h>
#include <string.h>

static int block_shape(const case_operand *c, int64_t shape[TP_MAX_RANK]) {
    int rank = c->operand.rank;
    memcpy(shape, c->operand.shape, sizeof c->operand.shape);
    if (c->layout == 't')
        shape[rank - 2] = c->operand.shape[rank - 1], shape[rank - 1] = c->operand.shape[rank - 2];
    if (c->layout == 'b') shape[0] = 1;
    for (int d = 0; c->layout == 's' && d < rank; d++) shape[d] += 2;
    return rank;
}

tp_status case_leaf_create(tp_device *device, const case_operand *c, int seed, tp_tensor **out,
                           void **elements) {
    int64_t shape[TP_MAX_RANK];
    const int rank = block_shape(c, shape);
    if (!(*elements = malloc((size_t)c->elements * 4 + 4))) abort();
    case_fill(c, seed, *elements);
    return tp_tensor_from_data(device, (tp_dtype)c->operand.dtype, rank, shape, *elements, out);
}

tp_lazy *case_leaf_view(tp_lazy *x, const case_operand *c) {
    if (c->layout == 't') return tp_lazy_transpose(x, -1, -2);
    if (c->layout == 'b') return tp_lazy_broadcast(x, c->operand.rank, c->operand.shape);
    for (int d = 0; c->layout == 's' && d < c->operand.rank; d++)
        x = tp_lazy_slice(x, d, 1, 1 + c->operand.shape[d]);
    return x;
}
