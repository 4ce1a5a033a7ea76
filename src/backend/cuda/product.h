/* c ← alpha · op(a) · op(b) + beta · c, with f32 accumulation: what the kernels of products are made of.
 *
 * cuBLASLt computes it where the library is there and knows the case; our tiled kernel computes everything.
 */
#ifndef TAPER_BACKEND_CUDA_PRODUCT_H
#define TAPER_BACKEND_CUDA_PRODUCT_H

#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* c [m, n] is row-major with rows ldc apart; a is [m, k] with rows lda apart, or [k, m] if a_transposed; b is
 * [k, n], or [n, k] if b_transposed. From `batch` on, zeros stand for absent. */
typedef struct tpi_product {
    int64_t m, n, k;
    tp_dtype a_type, b_type, c_type;
    bool a_transposed, b_transposed;
    int64_t lda, ldb, ldc;
    float alpha, beta;
    int64_t batch;                        /* products; 0 or 1: one */
    int64_t a_stride, b_stride, c_stride; /* elements from one to the next; 0: the same matrix in all */
    const void *bias;                     /* [n], added to each row before the activation; NULL: none */
    tp_dtype bias_type;
    tpi_op activation; /* TPI_LEAF: none; or a unary pointwise operation */
} tpi_product;

#define TPI_PRODUCT_WORKSPACE ((size_t)32 << 20) /* bytes that make a step's scratch: cuBLASLt's own */

/* Enqueues the product. `workspace` may be NULL with 0 bytes. */
tp_status tpi_cuda_product(const tpi_launch *launch, const tpi_product *product, const void *a, const void *b,
                           void *c, void *workspace, size_t workspace_bytes);

/* The same by our own kernel: any dtypes and sizes. */
tp_status tpi_cuda_tiled_product(const tpi_launch *launch, const tpi_product *product, const void *a,
                                 const void *b, void *c);

/* Whether tpi_cuda_product asks cuBLASLt for this (which may yet have no algorithm for it). */
bool tpi_product_in_library(const tpi_product *product);

bool tpi_cublaslt_available(void);

/* y[i, j] ← activation(work[i, j] + bias[j]) of `columns` columns; y may be work, where both are f32. */
tp_status tpi_cuda_finish(const tpi_launch *launch, int64_t rows, int64_t columns, const float *work,
                          const void *bias, tp_dtype bias_type, tpi_op activation, void *y, tp_dtype y_type);

/* Element (i, j) of `rows` × `columns` floats whose rows are `leading` apart, as f32 without gaps. */
tp_status tpi_cuda_widen(const tpi_launch *launch, int64_t rows, int64_t columns, const void *from,
                         tp_dtype from_type, int64_t leading, float *to);

#ifdef __cplusplus
}
#endif
#endif
