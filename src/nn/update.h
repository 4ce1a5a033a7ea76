/* Low-rank updates of linear layers, as mathematics on recorded values.
 *
 * A tpi_update borrows its tensors: A [r, in] and B [out, r], stored as files store them; what is recorded
 * are their transposed views. Weights are [out, in] likewise. */
#ifndef TAPER_NN_UPDATE_H
#define TAPER_NN_UPDATE_H

#include "taper/ops.h"

typedef struct tpi_update {
    tp_tensor *a, *b;
    double scale;
    double dropout;  /* of x; acts where there is a seed */
    uint32_t stream; /* of the dropout: different for each layer that shares a seed */
} tpi_update;

/* scale · dropout(x) · Aᵀ · Bᵀ; seed i32 [2], NULL: no dropout. */
tp_lazy *tpi_update_lazy(tp_lazy *x, const tpi_update *update, tp_lazy *seed);

/* x · Wᵀ + bias + Σ updates; bias may be NULL. One operation where the first update has no dropout to do. */
tp_lazy *tpi_linear_lazy(tp_lazy *x, tp_tensor *weight, tp_tensor *bias, const tpi_update *updates, int count,
                         tp_lazy *seed);

/* A [rank, in] uniform in ±1/√in, B [out, rank] zero: f32, both owned. */
tp_status tpi_update_init(tp_device *device, int64_t in, int64_t out, int64_t rank, uint64_t seed,
                          tp_tensor **a, tp_tensor **b);

#endif
