/* Products with few rows: f32 x, or w that lies [k, n]; and the choice among the kernels for few rows.
 *
 * Where w lies [n, k], a warp makes two columns and its lanes share the inner dimension; where it lies [k,
 * n], eight lanes hold a line of 128 bytes of columns, and all others of the block share the inner dimension.
 * The low-rank term of an adapted layer takes one small kernel before, which leaves its h in parts. */
#include "backend/cuda/lora.h"
#include "backend/cuda/skinny.cuh"

namespace {

constexpr int slice = 256; /* inner indices of one part of h */

/* ---- h: part s sums inner indices s · slice ... ; a warp an element at a time ---- */

struct down_args {
    const void *x, *a;
    float *h; /* [parts, m, rank] */
    int64_t k, x_leading, a_k, a_r;
    int m, rank;
    float scale;
};

template <typename X, typename A> __global__ __launch_bounds__(256) void down_kernel(down_args p) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t k0 = (int64_t)blockIdx.x * slice;
    for (int i = warp; i < p.m * p.rank; i += 8) {
        const X *x = (const X *)p.x + i / p.rank * p.x_leading;
        const A *a = (const A *)p.a + i % p.rank * p.a_r;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < slice / 32; j++) {
            const int64_t k = k0 + j * 32 + lane;
            if (k < p.k) sum += to_f32(x[k]) * to_f32(a[k * p.a_k]);
        }
        sum = warp_reduce<add_of>(sum);
        if (lane == 0) p.h[(int64_t)blockIdx.x * p.m * p.rank + i] = p.scale * sum;
    }
}

/* ---- w [n, k] ---- */

template <typename T, int N> __device__ __forceinline__ void load_some(float (&to)[N], const T *from) {
    constexpr int width = N < pack_size<T> ? N : pack_size<T>;
#pragma unroll
    for (int i = 0; i < N / width; i++) {
        const auto part = *(const pack<T, width> *)(from + i * width);
#pragma unroll
        for (int j = 0; j < width; j++) to[i * width + j] = to_f32(part.at[j]);
    }
}

constexpr int warp_columns = 2, row_warps = 4;

/* ROWS rows of x from blockIdx.y · ROWS on; w's rows are multiples of 16 bytes. */
template <typename W, int ROWS> __global__ __launch_bounds__(row_warps * 32) void rows_kernel(skinny_args p) {
    constexpr int width = pack_size<W>;
    const int lane = threadIdx.x & 31;
    const int64_t column0 = ((int64_t)blockIdx.x * row_warps + (threadIdx.x >> 5)) * warp_columns;
    const int row0 = (int)blockIdx.y * ROWS, alive = p.m - row0 < ROWS ? p.m - row0 : ROWS;
    if (column0 >= p.n) return;
    const int there = p.n - column0 < warp_columns ? (int)(p.n - column0) : warp_columns;
    const float *x = (const float *)p.x + row0 * p.x_leading;
    const W *w = (const W *)p.w + column0 * p.w_leading;
    float sum[ROWS][warp_columns] = {};
#pragma unroll 4
    for (int64_t k = lane * width; k < p.k; k += 32 * width) {
        float weights[warp_columns][width], some[width];
#pragma unroll
        for (int c = 0; c < warp_columns; c++) /* beyond the last column, the last again */
            load_some(weights[c], w + (c < there ? c : there - 1) * p.w_leading + k);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            load_some(some, x + (i < alive ? i : alive - 1) * p.x_leading + k);
#pragma unroll
            for (int c = 0; c < warp_columns; c++)
#pragma unroll
                for (int j = 0; j < width; j++) sum[i][c] += some[j] * weights[c][j];
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (i >= alive) break;
        for (int r = lane; r < p.rank; r += 32) {
            const float h = h_of(p, row0 + i, r);
#pragma unroll
            for (int c = 0; c < warp_columns; c++)
                if (c < there) sum[i][c] += h * load_typed(p.b, p.b_type, r * p.b_r + (column0 + c) * p.b_n);
        }
#pragma unroll
        for (int c = 0; c < warp_columns; c++) {
            const float total = warp_reduce<add_of>(sum[i][c]);
            if (lane == 0 && c < there) finish_skinny<float>(p, row0 + i, column0 + c, total);
        }
    }
}

/* ---- w [k, n] ---- */

constexpr int column_warps = 16, line_lanes = 8, inner_lanes = 32 / line_lanes * column_warps;

template <typename X, typename W, int ROWS>
__global__ __launch_bounds__(column_warps * 32) void columns_kernel(skinny_args p) {
    constexpr int width = pack_size<W>, block_columns = line_lanes * width;
    __shared__ float parts[column_warps][ROWS][block_columns], h[ROWS * 64];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, line = lane % line_lanes;
    const int64_t block0 = (int64_t)blockIdx.x * block_columns, column = block0 + line * width;
    const int row0 = (int)blockIdx.y * ROWS, alive = p.m - row0 < ROWS ? p.m - row0 : ROWS;
    const X *x = (const X *)p.x + row0 * p.x_leading;
    const W *w = (const W *)p.w + column;
    float sum[ROWS][width] = {};
    for (int i = threadIdx.x; i < alive * p.rank; i += column_warps * 32)
        h[i] = h_of(p, row0 + i / p.rank, i % p.rank);
    if (column < p.n) {
#pragma unroll 4
        for (int64_t k = warp * (32 / line_lanes) + lane / line_lanes; k < p.k; k += inner_lanes) {
            float weights[width];
            load_some(weights, w + k * p.w_leading);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const float some = to_f32(x[(i < alive ? i : alive - 1) * p.x_leading + k]);
#pragma unroll
                for (int j = 0; j < width; j++) sum[i][j] += some * weights[j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < width; j++) {
            float v = sum[i][j];
#pragma unroll
            for (int hop = line_lanes; hop < 32; hop <<= 1) v += __shfl_xor_sync(0xffffffffu, v, hop);
            if (lane < line_lanes) parts[warp][i][line * width + j] = v;
        }
    __syncthreads();
    for (int i = threadIdx.x; i < alive * block_columns; i += column_warps * 32) {
        const int row = i / block_columns, c = i % block_columns;
        if (block0 + c >= p.n) continue;
        float total = 0.0f;
#pragma unroll
        for (int v = 0; v < column_warps; v++) total += parts[v][row][c];
        for (int r = 0; r < p.rank; r++)
            total += h[row * p.rank + r] * load_typed(p.b, p.b_type, r * p.b_r + (block0 + c) * p.b_n);
        finish_skinny<X>(p, row0 + row, block0 + c, total);
    }
}

/* ---- x or w at an odd address: a warp an element, a number at a time ---- */

struct odd_types {
    int x, w;
    bool transposed; /* w lies [n, k] */
};

__global__ __launch_bounds__(256) void odd_kernel(skinny_args p, odd_types types) {
    const int lane = threadIdx.x & 31;
    const int64_t i = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5), row = i / p.n, column = i % p.n;
    if (row >= p.m) return;
    float sum = 0.0f;
    for (int64_t k = lane; k < p.k; k += 32) {
        const int64_t at = types.transposed ? column * p.w_leading + k : k * p.w_leading + column;
        sum += load_typed(p.x, types.x, row * p.x_leading + k) * load_typed(p.w, types.w, at);
    }
    for (int r = lane; r < p.rank; r += 32)
        sum += h_of(p, (int)row, r) * load_typed(p.b, p.b_type, r * p.b_r + column * p.b_n);
    sum = warp_reduce<add_of>(sum);
    if (lane > 0) return;
    TPI_FLOAT_DTYPE(types.x, X, { finish_skinny<X>(p, (int)row, column, sum); });
}

template <typename W, int ROWS> void start_rows(cudaStream_t stream, const skinny_args &args) {
    const dim3 grid((unsigned)tpi_div_up(args.n, row_warps * warp_columns),
                    (unsigned)tpi_div_up(args.m, ROWS));
    rows_kernel<W, ROWS><<<grid, row_warps * 32, 0, stream>>>(args);
}

template <typename X, typename W, int ROWS> void start_columns(cudaStream_t stream, const skinny_args &args) {
    const dim3 grid((unsigned)tpi_div_up(args.n, line_lanes * pack_size<W>),
                    (unsigned)tpi_div_up(args.m, ROWS));
    columns_kernel<X, W, ROWS><<<grid, column_warps * 32, 0, stream>>>(args);
}

/* ---- host ---- */

/* Rows of x that one reading of w serves; more rows read it again. */
template <typename W> void start_f32(cudaStream_t stream, const skinny_args &args, bool rows) {
    if (args.m == 1)
        rows ? start_rows<W, 1>(stream, args) : start_columns<float, W, 1>(stream, args);
    else if (args.m == 2)
        rows ? start_rows<W, 2>(stream, args) : start_columns<float, W, 2>(stream, args);
    else
        rows ? start_rows<W, 4>(stream, args) : start_columns<float, W, 4>(stream, args);
}

template <typename T>
void start_16_bit(cudaStream_t stream, int processors, const skinny_args &args, bool rows) {
    if (rows)
        start_skinny_tensor<T>(stream, processors, args);
    else if (args.m == 1)
        start_columns<T, T, 1>(stream, args);
    else if (args.m == 2)
        start_columns<T, T, 2>(stream, args);
    else
        start_columns<T, T, 4>(stream, args);
}

bool whole_packs(const tpi_matrix &m, int64_t along) {
    const int width = m.dtype == TP_F32 ? 4 : 8;
    return along % width == 0 && m.leading % width == 0;
}

/* Most rows for which these kernels are the better ones: what follows reads a 16-bit w once, on tensor cores,
 * but would first write it again where x is f32. */
int64_t most_rows(const tpi_layer &l) {
    if (l.mx.dtype == TP_F32) return l.mw.dtype == TP_F32 ? 4 : skinny_rows;
    return l.mw.transposed ? skinny_rows : 4;
}

bool accepts(const tpi_step *step) {
    tpi_layer l;
    if (step->op == TPI_LINEAR_LORA && tpi_wants_low_rank(step)) return false;
    if (!tpi_layer_of(step, &l) || l.m > most_rows(l) || l.k == 0 || l.y_type != l.mx.dtype) return false;
    if (l.mx.transposed || (l.mx.dtype != TP_F32 && l.mx.dtype != l.mw.dtype)) return false;
    if (!whole_packs(l.mw, l.mw.transposed ? l.k : l.n)) return false;
    if (l.mw.transposed && !(l.k % 8 == 0 && (l.m == 1 || l.mx.leading % 8 == 0))) return false;
    return !l.a ||
           (l.rank <= 64 && l.ma.dtype == l.mb.dtype && (l.ma.dtype == TP_F32 || l.ma.dtype == l.mx.dtype));
}

size_t scratch(const tpi_step *step, int) {
    tpi_layer l;
    if (!tpi_layer_of(step, &l) || !l.a) return 0;
    return (size_t)(tpi_div_up(l.k, slice) * l.m * l.rank) * sizeof(float);
}

void set_low_rank(const tpi_launch *launch, const tpi_layer &l, skinny_args *args) {
    args->rank = (int)l.rank;
    args->h_parts = (int)tpi_div_up(l.k, slice);
    args->h = (const float *)tpi_scratch(launch);
    args->b = tpi_in(launch, l.b);
    args->b_type = l.mb.dtype;
    args->b_r = l.mb.transposed ? 1 : l.mb.leading;
    args->b_n = l.mb.transposed ? l.mb.leading : 1;
}

void start_down(const tpi_launch *launch, const tpi_layer &l) {
    const down_args args = {tpi_in(launch, 0),
                            tpi_in(launch, l.a),
                            (float *)tpi_scratch(launch),
                            l.k,
                            l.mx.leading,
                            l.ma.transposed ? 1 : l.ma.leading,
                            l.ma.transposed ? l.ma.leading : 1,
                            (int)l.m,
                            (int)l.rank,
                            l.scale};
    const unsigned blocks = (unsigned)tpi_div_up(l.k, slice);
    cudaStream_t stream = tpi_cuda_of(launch)->stream;
    TPI_FLOAT_DTYPE(l.mx.dtype, X, {
        if (l.ma.dtype == TP_F32)
            down_kernel<X, float><<<blocks, 256, 0, stream>>>(args);
        else
            down_kernel<X, X><<<blocks, 256, 0, stream>>>(args);
    });
}

tp_status skinny(const tpi_launch *launch) {
    tpi_layer l;
    if (tpi_out_operand(launch->step, 0)->count == 0) return TP_OK;
    if (!tpi_layer_of(launch->step, &l))
        return tpi_fail(TP_EINTERNAL, "skinny: a step that was not accepted");
    skinny_args args = {};
    args.x = tpi_in(launch, 0);
    args.w = tpi_in(launch, l.w);
    args.y = tpi_out(launch, 0);
    args.m = (int)l.m, args.n = l.n, args.k = l.k;
    args.x_leading = l.mx.leading, args.w_leading = l.mw.leading;
    args.activation = l.activation;
    if (l.bias)
        args.bias = tpi_in(launch, l.bias), args.bias_type = tpi_in_operand(launch->step, l.bias)->dtype;
    if (l.a && l.rank > 0) {
        set_low_rank(launch, l, &args);
        start_down(launch, l);
    }
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    if (((uintptr_t)args.x | (uintptr_t)args.w) % 16 != 0)
        odd_kernel<<<(unsigned)tpi_div_up(l.m * l.n, 8), 256, 0, cuda->stream>>>(
            args, {l.mx.dtype, l.mw.dtype, l.mw.transposed});
    else if (l.mx.dtype == TP_BF16)
        start_16_bit<__nv_bfloat16>(cuda->stream, cuda->processors, args, l.mw.transposed);
    else if (l.mx.dtype == TP_F16)
        start_16_bit<__half>(cuda->stream, cuda->processors, args, l.mw.transposed);
    else
        TPI_FLOAT_DTYPE(l.mw.dtype, W, { start_f32<W>(cuda->stream, args, l.mw.transposed); });
    return tpi_cuda_launched(launch);
}

} // namespace

extern "C" const tpi_kernel_entry tpi_cuda_skinny[] = {
    {TPI_MATMUL,
     {"cuda-thin", tpi_cuda_thin_gradient, tpi_cuda_thin_gradient_accepts, tpi_cuda_thin_gradient_scratch}},
    {TPI_MATMUL, {"cuda-thin", tpi_cuda_thin_matmul, tpi_cuda_thin_matmul_accepts, nullptr}},
    {TPI_MATMUL, {"cuda-rows", skinny, accepts, nullptr}},
    {TPI_LINEAR, {"cuda-rows", skinny, accepts, nullptr}},
    {TPI_LINEAR_LORA, {"cuda-rows", skinny, accepts, scratch}},
    TPI_KERNELS_END,
};
