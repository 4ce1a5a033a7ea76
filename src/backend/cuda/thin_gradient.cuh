/* xᵀ·g over many rows, where x [T, C] is wide and bf16 and g [T, R] thin: what its kernels are told. */
#ifndef TAPER_BACKEND_CUDA_THIN_GRADIENT_CUH
#define TAPER_BACKEND_CUDA_THIN_GRADIENT_CUH

#include "backend/cuda/layer.h"
#include "backend/cuda/tensor.cuh"

namespace {

using bf16 = __nv_bfloat16;

struct gradient_args {
    const bf16 *x;
    const void *g;
    void *out; /* y, or in f32 its shares, one after another */
    int64_t rows, columns, x_leading, g_leading, share_rows, out_column, out_rank; /* strides of y */
    int ranks;
};

/* The step's matrices: which input is wide, and both as they lie: [T, C] and [T, R]. */
struct thin_roles {
    int wide;
    tpi_matrix x, g;
};

inline void turn(tpi_matrix *m) {
    const int64_t rows = m->rows;
    m->rows = m->columns, m->columns = rows;
    m->transposed = !m->transposed;
}

inline bool thin_roles_of(const tpi_step *step, thin_roles *out) {
    tpi_matrix a, b;
    const tpi_operand *a_operand = tpi_in_operand(step, 0), *b_operand = tpi_in_operand(step, 1);
    if (a_operand->rank != 2 || b_operand->rank != 2) return false;
    if (!tpi_matrix_of(a_operand, &a) || !tpi_matrix_of(b_operand, &b) || !a.transposed || b.transposed)
        return false;
    turn(&a);
    out->wide = a.columns >= b.columns ? 0 : 1;
    out->x = out->wide == 0 ? a : b;
    out->g = out->wide == 0 ? b : a;
    return true;
}

/* All but the shares of the rows, and where the sums go. */
inline gradient_args thin_args_of(const tpi_launch *launch, const thin_roles &r) {
    gradient_args args = {};
    args.x = (const bf16 *)tpi_in(launch, r.wide);
    args.g = tpi_in(launch, 1 - r.wide);
    args.rows = r.x.rows, args.columns = r.x.columns, args.ranks = (int)r.g.columns;
    args.x_leading = r.x.leading, args.g_leading = r.g.leading;
    args.out_column = r.wide == 0 ? args.ranks : 1;
    args.out_rank = r.wide == 0 ? 1 : args.columns;
    return args;
}

} // namespace

#endif
