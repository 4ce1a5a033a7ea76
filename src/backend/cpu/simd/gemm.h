/* Matrix products on packed panels: what the product kernels, LoRA and attention share.
 *
 * c = Σ over terms of a·b, then bias and activation. A term is a pair of strided matrices of any floating
 * dtypes; two terms make an adapted linear layer, x·W + h·B, in one pass over c. Invariant: the work of each
 * thread depends on the shapes and the thread count alone. */
#ifndef TAPER_SIMD_GEMM_H
#define TAPER_SIMD_GEMM_H

#include "backend/backend.h"
#include "backend/cpu/simd/vec.h"

/* The register tile: MR rows by NR columns, chosen so that accumulators, two vectors of b and one of a fill
 * the register file. */
#if VW == 16
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * VW)

typedef struct tpi_matrix { /* element (i, j) stands at i·rs + j·cs */
    const void *data;
    int64_t rs, cs;
    int dtype;
} tpi_matrix;

typedef struct tpi_term { /* a [m, k] · b [k, n] */
    tpi_matrix a, b;
    int64_t k;
} tpi_term;

typedef struct tpi_gemm {
    int64_t m, n;
    int terms;
    tpi_term term[2];
    void *c; /* element (i, j) at i·rs + j·cs */
    int64_t rs, cs;
    int c_dtype;
    const void *bias; /* [n], or NULL */
    int bias_dtype;
    int activation; /* 0 or a unary tpi_op */
    bool add;       /* c += a·b: c is f32 with cs = 1, and there is no bias, no activation */
} tpi_gemm;

/* Bytes of scratch that one thread needs for a product of up to this shape, whatever the operands' strides.
 */
size_t TPI_SIMD(gemm_scratch)(int64_t m, int64_t n, int64_t k);

/* Computes rows [m0, m1) and columns [n0, n1) in the calling thread. */
void TPI_SIMD(gemm_block)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch);

/* `batch` products of g's sizes on all threads; describe(arg, i, &g) sets the i-th's operands. `scratch`
 * holds gemm_batch_scratch bytes. */
size_t TPI_SIMD(gemm_batch_scratch)(int64_t m, int64_t n, int64_t k, int threads);
void TPI_SIMD(gemm_batch)(tpi_threads *threads, const tpi_gemm *g, int64_t batch,
                          void (*describe)(const void *arg, int64_t i, tpi_gemm *g), const void *arg,
                          float *scratch);

/* Products with few rows or columns, which stream the large operand once without packing it. False, and
 * nothing done, if the block's shape or strides are not of that kind. */
bool TPI_SIMD(gemm_skinny)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch);
size_t TPI_SIMD(gemm_skinny_scratch)(int64_t m, int64_t n, int64_t k);

/* Rows [m0, m1) of `second` = scale·(first)·B in the calling thread: first's term is x·A with x's rows
 * contiguous, second's is h·B, whose h is not read. The rank is at most lora_rows_rank. */
void TPI_SIMD(lora_rows)(const tpi_gemm *first, const tpi_gemm *second, float scale, int64_t m0, int64_t m1,
                         float *scratch);
int64_t TPI_SIMD(lora_rows_rank)(void);
size_t TPI_SIMD(lora_rows_scratch)(int64_t n, int64_t k, int64_t r); /* 0 for larger ranks */

/* The same for few rows, on all threads, which divide the features: where lora_few_takes the operands'
 * strides, rank and rows. `stride`: floats of space a thread, at least lora_few_scratch bytes. */
bool TPI_SIMD(lora_few_takes)(const tpi_gemm *first, const tpi_gemm *second);
void TPI_SIMD(lora_few)(tpi_threads *threads, const tpi_gemm *first, const tpi_gemm *second, float scale,
                        float *space, size_t stride);
size_t TPI_SIMD(lora_few_scratch)(int64_t m);

/* Bias, activation and conversion of a finished block, from src (row stride ld) to c at (i, j). */
void TPI_SIMD(gemm_finish)(const tpi_gemm *g, int64_t i, int64_t j, int64_t rows, int64_t n, const float *src,
                           int64_t ld);

/* c[rows, n] (row stride ldc; n ≤ NR) = or += packed a · a panel of b: a as panels [k][MR], b at k·b_step.
 * What stands at `next`, a panel of as many steps or NULL, is fetched. */
void TPI_SIMD(gemm_panel)(int64_t rows, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,
                          const float *next, float *c, int64_t ldc, bool accumulate);

/* Blocks as f32 panels, padded with zeros to whole panels: `rows` by `k` of a as [row / MR][k][MR], k by `n`
 * of b as [column / NR][k][NR]. (i0, j0) is the block's corner, `stride` the floats from one panel to the
 * next. */
void TPI_SIMD(pack_a)(const tpi_matrix *a, int64_t i0, int64_t j0, int64_t rows, int64_t k, float *out,
                      int64_t stride);
void TPI_SIMD(pack_b)(const tpi_matrix *b, int64_t i0, int64_t j0, int64_t k, int64_t n, float *out,
                      int64_t stride);

/* A block as f32 rows, `stride` floats apart; up to VW - 1 floats behind a row are written too. */
void TPI_SIMD(pack_rows)(const tpi_matrix *a, int64_t i0, int64_t j0, int64_t rows, int64_t k, float *out,
                         int64_t stride);

static inline const void *tpi_matrix_at(const tpi_matrix *x, int64_t i, int64_t j) {
    return (const char *)x->data + (i * x->rs + j * x->cs) * dtype_size(x->dtype);
}
static inline tpi_matrix tpi_matrix_transposed(tpi_matrix x) {
    return (tpi_matrix){x.data, x.cs, x.rs, x.dtype};
}

/* y = activation(x) for a tpi_op; 0 is the identity. */
vf TPI_SIMD(activate)(int op, vf x);

#endif
