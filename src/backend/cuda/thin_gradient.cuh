/* xᵀ·g over many rows, where x [T, C] is wide and bf16 and g [T, R] thin, as its two kernels share it: the
 * sums of 64 columns and up to 8 · TILES ranks over some of the rows.
 *
 * x lies with its columns contiguous, while the mma wants pairs of rows: a lane loads eight columns of four
 * rows and pairs them by byte permutations. A block's warps share the rows by 16, and each holds all sums. */
#ifndef TAPER_BACKEND_CUDA_THIN_GRADIENT_CUH
#define TAPER_BACKEND_CUDA_THIN_GRADIENT_CUH

#include "backend/cuda/layer.h"
#include "backend/cuda/tensor.cuh"

namespace {

using bf16 = __nv_bfloat16;

constexpr int warps = 8, threads = warps * 32, block_columns = 64, step_rows = 16;

struct gradient_args {
    const bf16 *x;
    const void *g;
    void *out; /* y, or in f32 its shares, one after another */
    int64_t rows, columns, x_leading, g_leading, share_rows, out_column, out_rank; /* strides of y */
    int ranks;
};

/* Columns 8g ... 8g + 7 of four rows, and the ranks' numbers of the same rows. */
template <typename G, int TILES> struct step_data {
    uint4 x[4];
    float g[4][TILES];
};

template <typename G, int TILES>
__device__ __forceinline__ step_data<G, TILES> load_step(const gradient_args &p, int64_t row0, int64_t end,
                                                         int64_t column, int rank) {
    step_data<G, TILES> s;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int64_t row = row0 + threadIdx.x % 4 * 4 + j;
        s.x[j] = row < end && column < p.columns ? load_stream(p.x + row * p.x_leading + column) : uint4{};
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            const bool there = row < end && rank + 8 * n < p.ranks;
            s.g[j][n] = there ? to_f32(((const G *)p.g)[row * p.g_leading + rank + 8 * n]) : 0.0f;
        }
    }
    return s;
}

__device__ __forceinline__ uint32_t word(const uint4 &x, int i) {
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

/* sum[i]: columns 8g + 2i (places 0, 1) and 8g + 2i + 1 (places 2, 3). */
template <typename G, int TILES>
__device__ __forceinline__ void multiply_step(float (&sum)[4][TILES][4], const step_data<G, TILES> &s) {
    uint32_t high[TILES][2], low[TILES][2];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        split_pair(s.g[0][n], s.g[1][n], high[n][0], low[n][0]);
        split_pair(s.g[2][n], s.g[3][n], high[n][1], low[n][1]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t a[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t first = word(s.x[2 * half], i), second = word(s.x[2 * half + 1], i);
            a[2 * half] = __byte_perm(first, second, 0x5410);
            a[2 * half + 1] = __byte_perm(first, second, 0x7632);
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            mma(sum[i][n], a, high[n][0], high[n][1], bf16());
            if (sizeof(G) > 2) mma(sum[i][n], a, low[n][0], low[n][1], bf16());
        }
    }
}

/* The warps add their sums one after another into `total` [column][rank]. */
template <int TILES> __device__ void add_up(float (*total)[8 * TILES + 1], const float (&sum)[4][TILES][4]) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    for (int turn = 0; turn < warps; turn++) {
        if (warp == turn) {
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int n = 0; n < TILES; n++)
#pragma unroll
                    for (int v = 0; v < 4; v++) {
                        float &cell = total[8 * g + 2 * i + v / 2][8 * n + 2 * t + v % 2];
                        cell = turn == 0 ? sum[i][n][v] : cell + sum[i][n][v];
                    }
        }
        __syncthreads();
    }
}

/* `total` of the rows begin ... end - 1, columns from column0 on and ranks from rank0 on. */
template <typename G, int TILES>
__device__ __forceinline__ void sum_rows(float (*total)[8 * TILES + 1], const gradient_args &p,
                                         int64_t column0, int rank0, int64_t begin, int64_t end) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float sum[4][TILES][4] = {};
#pragma unroll 2
    for (int64_t row = begin + warp * step_rows; row < end; row += warps * step_rows)
        multiply_step<G, TILES>(sum,
                                load_step<G, TILES>(p, row, end, column0 + lane / 4 * 8, rank0 + lane / 4));
    add_up<TILES>(total, sum);
}

/* ---- host ---- */

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

/* Rows of each of so many shares: whole steps of all warps. */
inline int64_t thin_share_rows(int64_t rows, int shares) {
    return tpi_div_up(tpi_div_up(rows, shares), warps * step_rows) * warps * step_rows;
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
