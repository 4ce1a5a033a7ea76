/* How an operand lies as a matrix: what products ask before they read it. */
#ifndef TAPER_BACKEND_CUDA_MATRIX_H
#define TAPER_BACKEND_CUDA_MATRIX_H

#include "backend/backend.h"

/* rows × columns; element (i, j) lies at i · leading + j, or at i + j · leading if transposed. */
typedef struct tpi_matrix {
    tp_dtype dtype;
    bool transposed;
    int64_t rows, columns, leading;
} tpi_matrix;

/* An operand's stride along dimension d of a shape of `rank` dimensions that it is broadcast to. */
static inline int64_t tpi_stride_along(const tpi_operand *operand, int rank, int d) {
    const int own = d - (rank - operand->rank);
    return own < 0 || operand->shape[own] == 1 ? 0 : operand->stride[own];
}

/* The distance of the rows of an operand [..., columns], if it is the same everywhere; 0 for fewer than two
 * rows. */
static inline bool tpi_row_distance(const tpi_operand *operand, int64_t *distance) {
    int64_t next = 0;
    *distance = 0;
    for (int d = operand->rank - 2; d >= 0; d--) {
        if (operand->shape[d] == 1) continue;
        if (next == 0)
            *distance = operand->stride[d];
        else if (operand->stride[d] != next)
            return false;
        next = operand->stride[d] * operand->shape[d];
        if (next == 0) return false; /* broadcast */
    }
    return true;
}

/* The operand [..., columns] as one matrix where it lies; false if it must be copied first. */
static inline bool tpi_matrix_of(const tpi_operand *operand, tpi_matrix *out) {
    int last = operand->rank - 1;
    int64_t columns = operand->shape[last], along = operand->stride[last], distance;
    out->dtype = (tp_dtype)operand->dtype;
    out->transposed = false;
    out->columns = columns;
    out->rows = 1;
    for (int d = 0; d < last; d++) out->rows *= operand->shape[d];
    out->leading = columns > 0 ? columns : 1;
    if (operand->count == 0) return true;
    if (!tpi_row_distance(operand, &distance)) return false;
    if (along == 1 || columns == 1) {
        if (out->rows > 1) out->leading = distance;
        return out->leading >= columns;
    }
    out->transposed = true;
    out->leading = along;
    return (distance == 1 || out->rows == 1) && along >= out->rows;
}

/* The last two dimensions alone. */
static inline tpi_operand tpi_last_two(const tpi_operand *operand) {
    tpi_operand matrix = *operand;
    matrix.rank = 2;
    for (int d = 0; d < 2; d++) {
        matrix.shape[d] = operand->shape[operand->rank - 2 + d];
        matrix.stride[d] = operand->stride[operand->rank - 2 + d];
    }
    matrix.count = matrix.shape[0] * matrix.shape[1];
    return matrix;
}

/* What a MATMUL's result is multiplied by. */
static inline float tpi_matmul_scale(const tpi_step *step) {
    const tpi_attr_matmul *attr = (const tpi_attr_matmul *)step->attr;
    return attr ? (float)attr->scale : 1.0f;
}

/* Whether somebody wants output 1 of a LINEAR_LORA: scale · x · a. */
static inline bool tpi_wants_low_rank(const tpi_step *step) {
    return step->n_out > 1 && !(step->optional_missing & 2u);
}

#endif
