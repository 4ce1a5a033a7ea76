/* y = scale · (x·a)·b in one kernel: the low-rank update (Hu et al. 2021) for matrices that stay in the
 * caches.
 *
 * A block takes four rows. Its threads share the inner dimension: each holds 4 × RANKS partial sums of x·a,
 * which are added across lanes and warps; then each thread makes columns of y. The product x·a, h, never
 * leaves the block, and b's first elements are on their way before h is known. */
#include "backend/cuda/lora.h"
#include "backend/cuda/device.cuh"
#include "backend/cuda/early.cuh"

namespace {

constexpr int threads = 256, warps = threads / 32, rows = 4, columns = 2; /* columns of y a thread at once */
constexpr int largest_rank = 64; /* for which this is the better kernel */

struct lora_args {
    const void *x, *a, *b;
    const void *bias; /* NULL: none */
    void *y;
    int64_t m, k, n, x_leading, a_k, a_r, b_r, b_n; /* strides of a [k, r] and b [r, n] */
    int rank, bias_type;
    float scale;
};

/* Adds up `sums` over the warp; lane l then has number l in sums[0]: each exchange gives away half of the
 * numbers. */
template <int HALF = 16> __device__ __forceinline__ void warp_transpose_sum(float (&sums)[32]) {
    const bool upper = threadIdx.x & HALF;
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const float keep = upper ? sums[i + HALF] : sums[i], give = upper ? sums[i] : sums[i + HALF];
        sums[i] = keep + __shfl_xor_sync(0xffffffffu, give, HALF);
    }
    if constexpr (HALF > 1) warp_transpose_sum<HALF / 2>(sums);
}

/* RANKS elements of a's row k from rank r0 on. PACKED, as a [k, r] and b [r, n] without gaps are: neighbours
 * are loaded at once, and there are no ranks beyond the last. */
template <typename A, int RANKS, bool PACKED>
__device__ __forceinline__ void load_down(float (&to)[RANKS], const lora_args &p, int64_t k, int r0) {
    const A *a = (const A *)p.a + k * p.a_k + r0 * p.a_r;
    if constexpr (PACKED) {
        constexpr int width = pack_size<A>;
#pragma unroll
        for (int i = 0; i < RANKS / width; i++) {
            const auto part = *(const pack<A, width> *)(a + i * width);
#pragma unroll
            for (int j = 0; j < width; j++) to[i * width + j] = to_f32(part.at[j]);
        }
    } else {
#pragma unroll
        for (int r = 0; r < RANKS; r++) to[r] = r0 + r < p.rank ? to_f32(a[r * p.a_r]) : 0.0f;
    }
}

/* b's elements of `columns` columns and RANKS ranks; zeros outside. */
template <typename A, int RANKS, bool PACKED>
__device__ __forceinline__ void load_up(float (&to)[RANKS][columns], const lora_args &p, int64_t column,
                                        int r0) {
    const A *b = (const A *)p.b + column * p.b_n + r0 * p.b_r;
#pragma unroll
    for (int r = 0; r < RANKS; r++) {
        pack<A, columns> part = {};
        if constexpr (PACKED) {
            if (column < p.n) part = *(const pack<A, columns> *)(b + r * p.b_r);
        } else {
#pragma unroll
            for (int c = 0; c < columns; c++)
                if (r0 + r < p.rank && column + c < p.n) part.at[c] = b[r * p.b_r + c * p.b_n];
        }
#pragma unroll
        for (int c = 0; c < columns; c++) to[r][c] = to_f32(part.at[c]);
    }
}

/* The block's h of ranks r0 ... r0 + RANKS - 1; all threads may read it afterwards. */
template <typename X, typename A, int RANKS, bool PACKED>
__device__ void make_h(float (*h)[TPI_LARGEST_RANK], float (*parts)[rows * RANKS], const lora_args &p,
                       int64_t row0, int r0) {
    const X *x = (const X *)p.x + row0 * p.x_leading;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float sums[rows * RANKS / 32][32] = {};
    const int alive = p.m - row0 < rows ? (int)(p.m - row0) : rows;
#pragma unroll 2
    for (int64_t k = threadIdx.x; k < p.k; k += threads) {
        float xs[rows], as[RANKS];
#pragma unroll
        for (int i = 0; i < rows; i++) xs[i] = i < alive ? to_f32(x[i * p.x_leading + k]) : 0.0f;
        load_down<A, RANKS, PACKED>(as, p, k, r0);
#pragma unroll
        for (int i = 0; i < rows; i++)
#pragma unroll
            for (int r = 0; r < RANKS; r++) sums[(i * RANKS + r) / 32][(i * RANKS + r) % 32] += xs[i] * as[r];
    }
#pragma unroll
    for (int s = 0; s < rows * RANKS / 32; s++) {
        warp_transpose_sum(sums[s]);
        parts[warp][s * 32 + lane] = sums[s][0];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * RANKS; i += threads) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < warps; w++) sum += parts[w][i];
        const int r = r0 + i % RANKS;
        h[i / RANKS][r] = r < p.rank ? p.scale * sum : 0.0f;
    }
    __syncthreads();
}

template <typename Y>
__device__ void store_columns(Y *y, const float (&sum)[columns], int64_t column, int64_t n) {
    if (n % columns == 0 && (uintptr_t)y % (columns * sizeof(Y)) == 0) {
        pack<Y, columns> out;
#pragma unroll
        for (int c = 0; c < columns; c++) out.at[c] = from_f32<Y>(sum[c]);
        *(pack<Y, columns> *)(y + column) = out;
    } else {
        for (int c = 0; c < columns && column + c < n; c++) y[column + c] = from_f32<Y>(sum[c]);
    }
}

template <typename X, typename A, typename Y, int RANKS, bool PACKED>
__global__ __launch_bounds__(threads) void lora_kernel(lora_args p) {
    __shared__ float h[rows][TPI_LARGEST_RANK], parts[warps][rows * RANKS];
    const int64_t row0 = (int64_t)blockIdx.x * rows;
    const int64_t column0 = (int64_t)threadIdx.x * columns;
    float b[RANKS][columns];
    take_turn();
    load_up<A, RANKS, PACKED>(b, p, column0, 0);
    for (int r0 = 0; r0 < p.rank; r0 += RANKS) make_h<X, A, RANKS, PACKED>(h, parts, p, row0, r0);
    for (int64_t column = column0; column < p.n; column += threads * columns) {
        float sum[rows][columns] = {};
#pragma unroll
        for (int c = 0; c < columns && p.bias; c++) {
            const float bias = column + c < p.n ? load_typed(p.bias, p.bias_type, column + c) : 0.0f;
#pragma unroll
            for (int i = 0; i < rows; i++) sum[i][c] = bias;
        }
        for (int r0 = 0; r0 < p.rank; r0 += RANKS) {
            if (r0 > 0 || column != column0) load_up<A, RANKS, PACKED>(b, p, column, r0);
#pragma unroll
            for (int r = 0; r < RANKS; r++)
#pragma unroll
                for (int i = 0; i < rows; i++)
#pragma unroll
                    for (int c = 0; c < columns; c++) sum[i][c] += h[i][r0 + r] * b[r][c];
        }
#pragma unroll
        for (int i = 0; i < rows; i++)
            if (row0 + i < p.m) store_columns((Y *)p.y + (row0 + i) * p.n, sum[i], column, p.n);
    }
}

template <typename X, typename A, typename Y, int RANKS>
void start_ranks(const tpi_launch *launch, const lora_args &args) {
    const bool packed = args.rank % RANKS == 0 && args.a_r == 1 && args.a_k % pack_size<A> == 0 &&
                        args.b_n == 1 && (args.b_r | args.n) % columns == 0 &&
                        ((uintptr_t)args.a | (uintptr_t)args.b) % 16 == 0;
    start_early(tpi_cuda_of(launch),
                packed ? lora_kernel<X, A, Y, RANKS, true> : lora_kernel<X, A, Y, RANKS, false>,
                (unsigned)tpi_div_up(args.m, rows), threads, args);
}

template <typename X, typename A, typename Y> void start(const tpi_launch *launch, const lora_args &args) {
    if (args.rank <= 8)
        start_ranks<X, A, Y, 8>(launch, args);
    else
        start_ranks<X, A, Y, 16>(launch, args);
}

template <typename X, typename A>
void start_into(const tpi_launch *launch, const lora_args &args, tp_dtype y_type) {
    if (y_type == TP_F32)
        start<X, A, float>(launch, args);
    else
        start<X, A, X>(launch, args);
}

bool accepts(const tpi_step *step) {
    tpi_layer l;
    return tpi_layer_of(step, &l) && tpi_lora_fused_fits(&l) && l.y_type == l.mx.dtype;
}

tp_status lora(const tpi_launch *launch) {
    tpi_layer l;
    if (!tpi_layer_of(launch->step, &l)) return tpi_fail(TP_EINTERNAL, "lora: a step that was not accepted");
    return tpi_cuda_lora_fused_into(launch, &l, false, tpi_out(launch, 0), l.y_type);
}

} // namespace

bool tpi_lora_fused_fits(const tpi_layer *l) {
    const bool adapters = l->ma.dtype == l->mb.dtype && (l->ma.dtype == TP_F32 || l->ma.dtype == l->mx.dtype);
    return adapters && !l->mx.transposed && l->rank <= largest_rank;
}

tp_status tpi_cuda_lora_fused_into(const tpi_launch *launch, const tpi_layer *l, bool with_bias, void *y,
                                   tp_dtype y_type) {
    if (l->m == 0 || l->n == 0) return TP_OK;
    const lora_args args = {tpi_in(launch, 0),
                            tpi_in(launch, l->a),
                            tpi_in(launch, l->b),
                            with_bias && l->bias ? tpi_in(launch, l->bias) : nullptr,
                            y,
                            l->m,
                            l->k,
                            l->n,
                            l->mx.leading,
                            l->ma.transposed ? 1 : l->ma.leading,
                            l->ma.transposed ? l->ma.leading : 1,
                            l->mb.transposed ? 1 : l->mb.leading,
                            l->mb.transposed ? l->mb.leading : 1,
                            (int)l->rank,
                            tpi_in_operand(launch->step, l->bias)->dtype,
                            l->scale};
    TPI_FLOAT_DTYPE(l->mx.dtype, X, {
        if (l->ma.dtype == TP_F32)
            start_into<X, float>(launch, args, y_type);
        else
            start_into<X, X>(launch, args, y_type);
    });
    return tpi_cuda_launched(launch);
}

extern "C" const tpi_kernel_entry tpi_cuda_lora[] = {
    {TPI_LORA, {"cuda-tensor", tpi_cuda_lora_tensor, tpi_cuda_lora_tensor_accepts, nullptr}},
    {TPI_LORA, {"cuda-fused", lora, accepts, nullptr}},
    {TPI_LORA, {"cublaslt", tpi_cuda_layer, tpi_cuda_layer_in_library, tpi_cuda_layer_scratch}},
    {TPI_LORA, {"cuda", tpi_cuda_layer, tpi_cuda_layer_accepts, tpi_cuda_layer_scratch}},
    TPI_KERNELS_END,
};
