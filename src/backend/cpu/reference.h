/* What the reference kernels are written with: strided vectors of any dtype read as doubles, and walks over
 * the rows of several operands at once.
 *
 * Invariant: a walk visits the rows (the lines along one dimension) of a shape in row-major order; each
 * operand has at each row an offset and along the row a stride, 0 where it is broadcast. So a kernel reads as
 * its formula over one row, whatever the layouts are. */
#ifndef TAPER_BACKEND_CPU_REFERENCE_H
#define TAPER_BACKEND_CPU_REFERENCE_H

#include "backend/backend.h"
#include "backend/cpu/cpu.h"
#include "core/convert.h"
#include "core/error.h"
#include "taper/ops.h"

/* A strided vector. Kernels put into outputs and scratch alone, so inputs may drop their const here. */
typedef struct tpi_vec {
    void *data; /* NULL: an output that is not wanted; puts do nothing */
    tp_dtype dtype;
    int64_t offset, stride; /* elements */
} tpi_vec;

static inline double tpi_get(tpi_vec v, int64_t i) {
    i = v.offset + i * v.stride;
    return v.dtype == TP_I32 ? (double)((const int32_t *)v.data)[i]
                             : (double)tpi_load_f32(v.data, v.dtype, i);
}
static inline int32_t tpi_get_i32(tpi_vec v, int64_t i) {
    return ((const int32_t *)v.data)[v.offset + i * v.stride];
}
static inline int32_t tpi_double_to_i32(double x) {
    if (!(x == x)) return 0;
    if (x >= 2147483647.0) return INT32_MAX;
    return x <= -2147483648.0 ? INT32_MIN : (int32_t)x;
}
static inline void tpi_put(tpi_vec v, int64_t i, double x) {
    if (!v.data) return;
    i = v.offset + i * v.stride;
    if (v.dtype == TP_I32)
        ((int32_t *)v.data)[i] = tpi_double_to_i32(x);
    else
        tpi_store_f32(v.data, v.dtype, i, (float)x);
}

/* x as it would be read back after a put into that dtype. */
static inline double tpi_rounded(tp_dtype dtype, double x) {
    double cell[1];
    tpi_vec v = {cell, dtype, 0, 1};
    tpi_put(v, 0, x);
    return tpi_get(v, 0);
}

#define TPI_WALK_OPERANDS 9

typedef struct tpi_walk {
    int rank, n;                /* dimensions besides the row's; operands */
    int64_t rows, length;       /* rows, and elements of one */
    int64_t shape[TP_MAX_RANK]; /* without the row's dimension */
    int64_t index[TP_MAX_RANK];
    int64_t stride[TPI_WALK_OPERANDS][TP_MAX_RANK];
    tpi_vec at[TPI_WALK_OPERANDS]; /* the operands' current rows */
    int row_dim, full_rank;
} tpi_walk;

/* Rows of `shape` along dimension `row_dim` (< 0: the last; a rank of 0 is one row of one element). */
void tpi_walk_init(tpi_walk *walk, int rank, const int64_t *shape, int row_dim);

/* Adds an operand, broadcast to the shape (aligned at the last dimension), whose element 0 is data[offset].
 */
void tpi_walk_add(tpi_walk *walk, const tpi_operand *operand, const void *data, int64_t offset);
void tpi_walk_seek(tpi_walk *walk, int64_t row); /* after the operands are added */
void tpi_walk_next(tpi_walk *walk);

/* Dimensions first ... first+n-1 of an operand as one of their own. */
tpi_operand tpi_operand_part(const tpi_operand *operand, int first, int n);

/* The element offset of row-major position `i` of an operand. */
int64_t tpi_operand_offset(const tpi_operand *operand, int64_t i);

/* An operand of rank 0 or 1 as a vector. */
tpi_vec tpi_vec_of(const tpi_operand *operand, const void *data);

/* Element `i` of operand k (inputs, then outputs) in row-major order, as a vector of one. */
tpi_vec tpi_cell(const tpi_launch *launch, int k, int64_t i);

/* Copies src to dst, of one shape: the bytes where the dtypes agree, else converted. */
void tpi_copy_elements(const tpi_operand *dst, void *dst_data, int64_t dst_offset, const tpi_operand *src,
                       const void *src_data, int64_t src_offset);

/* Splits `rows` rows of about `work` elements each over the threads. Piece number `piece` (< the thread
 * count) has rows begin ... end-1; small jobs are one piece. */
typedef void (*tpi_rows_fn)(const tpi_launch *launch, int64_t begin, int64_t end, int piece);
void tpi_for_rows(const tpi_launch *launch, int64_t rows, int64_t work, tpi_rows_fn fn);

/* The value of a pointwise operation: `how` is compare's, `s` the scalar operations'. Unary operations take
 * a; where takes condition, a, b; cast gives a. In double, for the caller to round. */
double tpi_pointwise_eval(tpi_op op, int how, double a, double b, double c, double s);

#endif
