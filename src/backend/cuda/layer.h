/* y = activation(x·w + scale·(x·a)·b + bias), whatever of it a step has: what LINEAR, LORA, LINEAR_LORA and
 * MATMUL by one matrix share. */
#ifndef TAPER_BACKEND_CUDA_LAYER_H
#define TAPER_BACKEND_CUDA_LAYER_H

#include "backend/cuda/matrix.h"
#include "backend/cuda/product.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tpi_layer {
    int w, a, b, bias; /* input numbers; 0: absent */
    float scale;
    tpi_op activation;
    tp_dtype y_type;
    int64_t m, n, k, rank; /* rows, features out, features in */
    tpi_matrix mx, mw, ma, mb;
} tpi_layer;

/* False if an input does not lie as a matrix, or the bias has gaps. */
bool tpi_layer_of(const tpi_step *step, tpi_layer *out);

/* The general way: products one after another, in f32 between them. */
tp_status tpi_cuda_layer(const tpi_launch *launch);
bool tpi_cuda_layer_accepts(const tpi_step *step);
bool tpi_cuda_layer_in_library(const tpi_step *step);
size_t tpi_cuda_layer_scratch(const tpi_step *step, int threads);

/* The next piece of scratch, as an offset: the same walk counts the bytes and hands out the pieces. */
static inline size_t tpi_piece(size_t *end, size_t bytes) {
    size_t piece = *end;
    *end += (bytes + 63) / 64 * 64;
    return piece;
}

#ifdef __cplusplus
}
#endif
#endif
