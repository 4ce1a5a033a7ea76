/* Products through the BLAS library, for the kernels that are made of them. */
#ifndef TAPER_BACKEND_CPU_OPENBLAS_H
#define TAPER_BACKEND_CPU_OPENBLAS_H

#include "backend/cpu/reference.h"

/* An operand as BLAS sees it: f32, row-major or transposed. */
typedef struct tpi_blas_matrix {
    float *data;
    int64_t rows, columns, leading; /* leading: stride between rows, or columns if transposed */
    bool transposed;
} tpi_blas_matrix;

/* c ← alpha·a·b + beta·c */
typedef struct tpi_blas_product {
    tpi_blas_matrix a, b, c;
    float alpha, beta;
} tpi_blas_product;

/* Bytes of scratch that the operand takes to be a matrix. */
size_t tpi_blas_packed_bytes(const tpi_operand *operand);

/* The operand as a matrix: where it lies, or converted into *scratch, which then moves on. */
tpi_blas_matrix tpi_blas_as_matrix(const tpi_operand *operand, const void *data, int64_t offset,
                                   char **scratch);

tpi_blas_matrix tpi_blas_columns(tpi_blas_matrix m, int64_t begin, int64_t end);

/* Cut along the longer side of c, which is row-major: a piece a thread. */
void tpi_blas_multiply(tpi_threads *threads, tpi_blas_product p);

/* LINEAR_CROSS_ENTROPY and its gradient. */
tp_status tpi_blas_loss(const tpi_launch *launch);
tp_status tpi_blas_loss_grad(const tpi_launch *launch);
size_t tpi_blas_loss_scratch(const tpi_step *step, int threads);

#endif
