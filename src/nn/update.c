/* Recording adapted linear layers. */
#include "nn/update.h"

#include <math.h>

/* A matrix as a leaf, transposed: a view. */
static tp_lazy *transposed(tp_graph *graph, tp_tensor *matrix) {
    return tp_lazy_transpose(tp_lazy_from_tensor(graph, matrix), 0, 1);
}

tp_lazy *tpi_update_lazy(tp_lazy *x, const tpi_update *update, tp_lazy *seed) {
    if (!x) return NULL;
    tp_graph *g = tp_lazy_graph(x);
    if (seed && update->dropout > 0) x = tp_lazy_dropout(x, seed, update->dropout, update->stream);
    return tp_lazy_lora_fused(x, transposed(g, update->a), transposed(g, update->b), update->scale);
}

tp_lazy *tpi_linear_lazy(tp_lazy *x, tp_tensor *weight, tp_tensor *bias, const tpi_update *updates, int count,
                         tp_lazy *seed) {
    if (!x) return NULL;
    tp_graph *g = tp_lazy_graph(x);
    tp_lazy *w = transposed(g, weight), *b = bias ? tp_lazy_from_tensor(g, bias) : NULL, *y;
    int done = 0;
    if (count > 0 && !(seed && updates[0].dropout > 0)) {
        y = tp_lazy_linear_lora(x, w, transposed(g, updates[0].a), transposed(g, updates[0].b),
                                updates[0].scale, b);
        done = 1;
    } else {
        y = tp_lazy_linear(x, w, b);
    }
    for (int i = done; i < count; i++) y = tp_lazy_add(y, tpi_update_lazy(x, &updates[i], seed));
    return y;
}

tp_status tpi_update_init(tp_device *device, int64_t in, int64_t out, int64_t rank, uint64_t seed,
                          tp_tensor **a, tp_tensor **b) {
    const int64_t a_shape[] = {rank, in}, b_shape[] = {out, rank};
    const double bound = 1.0 / sqrt((double)in);
    *b = NULL;
    tp_status status = tp_tensor_uniform(device, 2, a_shape, -bound, bound, seed, a);
    if (status != TP_OK) return status;
    status = tp_tensor_zeros(device, TP_F32, 2, b_shape, b);
    if (status == TP_OK) return TP_OK;
    tp_tensor_release(*a);
    *a = NULL;
    return status;
}
