/* xᵀ·g over many rows, where x [T, C] is wide and bf16 and g [T, R] thin: the gradients of adapters. On
 * Hopper thin_gradient_hopper.cu comes first.
 *
 * More than 32 ranks of a bf16 g are work for the library; else x is read once for each 32. A block takes 64
 * columns and a share of the rows; its warps share these by 16 and each holds all sums of the 64 columns. x
 * lies with its columns contiguous, while the mma wants pairs of rows: a lane loads eight columns of four
 * rows and pairs them by byte permutations. Shares are summed by a second kernel, always in the same order.
 */
#include "backend/cuda/lora.h"
#include "backend/cuda/thin_gradient.cuh"

namespace {

constexpr int warps = 8, threads = warps * 32, block_columns = 64, step_rows = 16;
constexpr int least_rows = 17;         /* fewer make no sum worth sharing out */
constexpr int64_t wanted_blocks = 512; /* enough for any device; the plan must not depend on it */
constexpr int ranks_at_once = 32;

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

/* blockIdx: columns, share of the rows, tile of ranks. */
template <typename G, int TILES>
__global__ __launch_bounds__(threads, 2) void gradient_kernel(gradient_args p) {
    __shared__ float total[block_columns][8 * TILES + 1];
    const int64_t column0 = (int64_t)blockIdx.x * block_columns, begin = blockIdx.y * p.share_rows;
    const int64_t end = begin + p.share_rows < p.rows ? begin + p.share_rows : p.rows;
    const int rank0 = (int)blockIdx.z * 8 * TILES;
    sum_rows<G, TILES>(total, p, column0, rank0, begin, end);
    const bool by_rank = p.out_rank == 1;
    float *out = (float *)p.out + blockIdx.y * p.columns * p.ranks;
    for (int i = threadIdx.x; i < block_columns * 8 * TILES; i += threads) {
        const int c = by_rank ? i / (8 * TILES) : i % block_columns,
                  r = by_rank ? i % (8 * TILES) : i / block_columns;
        if (column0 + c < p.columns && rank0 + r < p.ranks)
            out[(column0 + c) * p.out_column + (rank0 + r) * p.out_rank] = total[c][r];
    }
}

template <typename Y> __global__ void sum_shares_kernel(const float *shares, int count, int64_t size, Y *y) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < count; s++) sum += shares[s * size + i];
    y[i] = from_f32<Y>(sum);
}

template <typename G> void start(cudaStream_t stream, int shares, const gradient_args &args) {
    dim3 grid((unsigned)tpi_div_up(args.columns, block_columns), (unsigned)shares);
    if (args.ranks <= 8)
        gradient_kernel<G, 1><<<grid, threads, 0, stream>>>(args);
    else if (args.ranks <= 16)
        gradient_kernel<G, 2><<<grid, threads, 0, stream>>>(args);
    else {
        grid.z = (unsigned)tpi_div_up(args.ranks, ranks_at_once);
        gradient_kernel<G, 4><<<grid, threads, 0, stream>>>(args);
    }
}

/* ---- host ---- */

/* Rows of each of so many shares: whole steps of all warps. */
int64_t share_rows_of(int64_t rows, int shares) {
    return tpi_div_up(tpi_div_up(rows, shares), warps * step_rows) * warps * step_rows;
}

int shares_of(const thin_roles &r) {
    const int64_t groups = tpi_div_up(r.x.columns, block_columns);
    const int64_t most = tpi_div_up(r.x.rows, warps * step_rows), wanted = tpi_div_up(wanted_blocks, groups);
    return (int)(wanted < most ? wanted : most);
}

} // namespace

bool tpi_cuda_thin_gradient_accepts(const tpi_step *step) {
    thin_roles r;
    const tpi_operand *y = tpi_out_operand(step, 0);
    if (!thin_roles_of(step, &r) || tpi_matmul_scale(step) != 1.0f || r.x.dtype != TP_BF16 ||
        (r.g.dtype != TP_BF16 && r.g.dtype != TP_F32))
        return false;
    return r.x.rows >= least_rows && r.g.columns > 0 && r.g.columns <= TPI_LARGEST_RANK &&
           r.x.columns % 8 == 0 && r.x.leading % 8 == 0 && (y->dtype == TP_F32 || y->dtype == TP_BF16);
}

static bool is_library_work(const thin_roles &r) {
    return r.g.dtype == TP_BF16 && r.g.columns > ranks_at_once && tpi_cublaslt_available();
}

size_t tpi_cuda_thin_gradient_scratch(const tpi_step *step, int) {
    thin_roles r;
    if (!thin_roles_of(step, &r)) return 0;
    if (is_library_work(r)) return TPI_PRODUCT_WORKSPACE;
    return (size_t)(shares_of(r) * r.x.columns * r.g.columns) * sizeof(float);
}

static tp_status run_plain(const tpi_launch *launch, const thin_roles &r, bool in_library) {
    const tpi_matrix &a = r.wide == 0 ? r.x : r.g, &b = r.wide == 0 ? r.g : r.x;
    tpi_product plain = {};
    plain.m = a.columns, plain.n = b.columns, plain.k = a.rows;
    plain.a_type = a.dtype, plain.b_type = b.dtype;
    plain.c_type = (tp_dtype)tpi_out_operand(launch->step, 0)->dtype;
    plain.a_transposed = true;
    plain.lda = a.leading, plain.ldb = b.leading, plain.ldc = b.columns;
    plain.alpha = 1.0f;
    const void *left = tpi_in(launch, 0), *right = tpi_in(launch, 1);
    if (!in_library) return tpi_cuda_tiled_product(launch, &plain, left, right, tpi_out(launch, 0));
    return tpi_cuda_product(launch, &plain, left, right, tpi_out(launch, 0), tpi_scratch(launch),
                            TPI_PRODUCT_WORKSPACE);
}

tp_status tpi_cuda_thin_gradient(const tpi_launch *launch) {
    thin_roles r;
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    if (y->count == 0) return TP_OK;
    if (!thin_roles_of(launch->step, &r))
        return tpi_fail(TP_EINTERNAL, "matmul: a step that was not accepted");
    if (is_library_work(r)) return run_plain(launch, r, true);
    if ((uintptr_t)tpi_in(launch, r.wide) % 16 != 0) return run_plain(launch, r, false); /* views */
    const int shares = shares_of(r);
    gradient_args args = thin_args_of(launch, r);
    args.share_rows = share_rows_of(args.rows, shares);
    args.out = tpi_scratch(launch);
    cudaStream_t stream = tpi_cuda_of(launch)->stream;
    if (r.g.dtype == TP_F32)
        start<float>(stream, shares, args);
    else
        start<bf16>(stream, shares, args);
    TPI_FLOAT_DTYPE(y->dtype, Y, {
        sum_shares_kernel<<<(unsigned)tpi_div_up(y->count, threads), threads, 0, stream>>>(
            (const float *)args.out, shares, y->count, (Y *)tpi_out(launch, 0));
    });
    return tpi_cuda_launched(launch);
}
