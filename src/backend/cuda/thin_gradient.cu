/* xᵀ·g over many rows, where x [T, C] is wide and bf16 and g [T, R] thin: the gradients of adapters.
 *
 * More than 32 ranks of a bf16 g are work for the library; else x is read once for each 32. A block takes 64
 * columns and a share of the rows; its warps share these by 16 and each holds all sums of the 64 columns. x
 * lies with its columns contiguous, while the mma wants pairs of rows: a lane loads eight columns of four rows
 * and pairs them by byte permutations. Shares are summed by a second kernel, always in the same order. */
#include "backend/cuda/lora.h"
#include "backend/cuda/thin_gradient.cuh"

namespace {

constexpr int least_rows = 17;         /* fewer make no sum worth sharing out */
constexpr int64_t wanted_blocks = 512; /* enough for any device; the plan must not depend on it */
constexpr int ranks_at_once = 32;

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
    args.share_rows = thin_share_rows(args.rows, shares);
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
