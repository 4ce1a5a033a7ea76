/* Our own product for any dtypes and sizes, and the passes around a product: widening to f32, finishing.
 *
 * A block computes a 64 × 64 tile of c, 16 steps of the inner dimension at a time from shared memory, in f32.
 * Threads fetch along whichever dimension is contiguous, so both layouts of a and b are read in whole lines.
 */
#include "backend/cuda/activation.cuh"
#include "backend/cuda/product.h"

#include <limits.h>

namespace {

constexpr int tile = 64, depth = 16, threads = 256, own = 4; /* own × own results a thread */

struct tiled_args {
    tpi_product p;
    const void *a, *b;
    void *c;
    int64_t tiles_n, tiles, blocks; /* tiles across, of a product, of all */
};

/* Elements (outer, inner) of a matrix into part[inner][outer]; outside of it zeros. `along_inner`: inner is
 * the contiguous dimension, otherwise outer; `leading` is the other's stride. */
template <typename T>
__device__ void fetch(float (*part)[tile + 4], const T *from, bool along_inner, int64_t leading,
                      int64_t outer0, int64_t outers, int64_t inner0, int64_t inners) {
#pragma unroll
    for (int step = 0; step < tile * depth / threads; step++) {
        int at = (int)threadIdx.x + step * threads;
        int inner = along_inner ? at % depth : at / tile, outer = along_inner ? at / depth : at % tile;
        int64_t i = inner0 + inner, o = outer0 + outer;
        float x = 0.0f;
        if (i < inners && o < outers) x = to_f32(from[along_inner ? o * leading + i : i * leading + o]);
        part[inner][outer] = x;
    }
}

__device__ void store_results(const tiled_args &args, const float (*sum)[own], int64_t row0, int64_t column0,
                              int64_t batch) {
    const tpi_product &p = args.p;
#pragma unroll
    for (int i = 0; i < own; i++)
#pragma unroll
        for (int j = 0; j < own; j++) {
            int64_t row = row0 + i, column = column0 + j;
            if (row >= p.m || column >= p.n) continue;
            int64_t at = batch * p.c_stride + row * p.ldc + column;
            float x = p.alpha * sum[i][j];
            if (p.beta != 0.0f) x += p.beta * load_typed(args.c, p.c_type, at);
            if (p.bias) x += load_typed(p.bias, p.bias_type, column);
            store_typed(args.c, p.c_type, at, activated(x, p.activation));
        }
}

/* Tile `block` of all batches. */
template <typename A, typename B>
__device__ __forceinline__ void make_tile(const tiled_args &args, int64_t block) {
    __shared__ alignas(16) float a_part[depth][tile + 4], b_part[depth][tile + 4];
    const tpi_product &p = args.p;
    const int64_t batch = block / args.tiles, at = block % args.tiles;
    const int64_t row0 = at / args.tiles_n * tile, column0 = at % args.tiles_n * tile;
    const A *a = (const A *)args.a + batch * p.a_stride;
    const B *b = (const B *)args.b + batch * p.b_stride;
    const int row = (int)threadIdx.x / (tile / own) * own, column = (int)threadIdx.x % (tile / own) * own;
    float sum[own][own] = {};
    for (int64_t k0 = 0; k0 < p.k; k0 += depth) {
        fetch(a_part, a, !p.a_transposed, p.lda, row0, p.m, k0, p.k);
        fetch(b_part, b, p.b_transposed, p.ldb, column0, p.n, k0, p.k);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < depth; k++) {
            const auto x = *(const pack<float, own> *)&a_part[k][row];
            const auto w = *(const pack<float, own> *)&b_part[k][column];
#pragma unroll
            for (int i = 0; i < own; i++)
#pragma unroll
                for (int j = 0; j < own; j++) sum[i][j] += x.at[i] * w.at[j];
        }
        __syncthreads();
    }
    store_results(args, sum, row0 + row, column0 + column, batch);
}

/* More tiles than a grid may have blocks go around. */
template <typename A, typename B> __global__ __launch_bounds__(threads) void tiled_kernel(tiled_args args) {
    for (int64_t block = blockIdx.x; block < args.blocks; block += gridDim.x) make_tile<A, B>(args, block);
}

template <typename T>
__global__ void widen_kernel(const T *from, int64_t leading, int64_t columns, int64_t count, float *to) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride)
        to[i] = to_f32(from[leading == columns ? i : i / columns * leading + i % columns]);
}

/* Eight elements a thread and round; `count` is a multiple of 8. */
template <typename T> __global__ void widen_dense_kernel(const T *from, int64_t count, float *to) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x * 8;
    for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < count; i += stride) {
        const auto x = *(const pack<T, 8> *)(from + i);
        pack<float, 4> y[2];
#pragma unroll
        for (int j = 0; j < 8; j++) y[j / 4].at[j % 4] = to_f32(x.at[j]);
        *(pack<float, 4> *)(to + i) = y[0];
        *(pack<float, 4> *)(to + i + 4) = y[1];
    }
}

template <typename T>
__global__ void finish_kernel(const float *work, const void *bias, int bias_type, int activation,
                              int64_t columns, int64_t count, T *y) {
    const int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        float x = work[i];
        if (bias) x += load_typed(bias, bias_type, i % columns);
        y[i] = from_f32<T>(activated(x, activation));
    }
}

unsigned blocks_for(const tpi_launch *launch, int64_t items) {
    int64_t blocks = tpi_div_up(items, threads), most = (int64_t)tpi_cuda_of(launch)->processors * 32;
    return (unsigned)(blocks < most ? blocks : most);
}

} // namespace

tp_status tpi_cuda_tiled_product(const tpi_launch *launch, const tpi_product *product, const void *a,
                                 const void *b, void *c) {
    tiled_args args = {*product, a, b, c, tpi_div_up(product->n, tile), 0, 0};
    args.tiles = tpi_div_up(product->m, tile) * args.tiles_n;
    args.blocks = args.tiles * (product->batch > 1 ? product->batch : 1);
    if (args.blocks == 0) return TP_OK;
    const unsigned blocks = (unsigned)(args.blocks < INT_MAX ? args.blocks : INT_MAX);
    TPI_FLOAT_DTYPE(product->a_type, A, {
        TPI_FLOAT_DTYPE(product->b_type, B,
                        { tiled_kernel<A, B><<<blocks, threads, 0, tpi_cuda_of(launch)->stream>>>(args); });
    });
    return tpi_cuda_launched(launch);
}

tp_status tpi_cuda_widen(const tpi_launch *launch, int64_t rows, int64_t columns, const void *from,
                         tp_dtype from_type, int64_t leading, float *to) {
    const int64_t count = rows * columns;
    if (count == 0) return TP_OK;
    const bool dense = leading == columns && count % 8 == 0 && (uintptr_t)from % 16 == 0;
    cudaStream_t stream = tpi_cuda_of(launch)->stream;
    TPI_FLOAT_DTYPE(from_type, T, {
        if (dense && sizeof(T) == 2)
            widen_dense_kernel<<<blocks_for(launch, count / 8), threads, 0, stream>>>((const T *)from, count,
                                                                                      to);
        else
            widen_kernel<<<blocks_for(launch, count), threads, 0, stream>>>((const T *)from, leading, columns,
                                                                            count, to);
    });
    return tpi_cuda_launched(launch);
}

tp_status tpi_cuda_finish(const tpi_launch *launch, int64_t rows, int64_t columns, const float *work,
                          const void *bias, tp_dtype bias_type, tpi_op activation, void *y, tp_dtype y_type) {
    const int64_t count = rows * columns;
    if (count == 0) return TP_OK;
    TPI_FLOAT_DTYPE(y_type, T, {
        finish_kernel<<<blocks_for(launch, count), threads, 0, tpi_cuda_of(launch)->stream>>>(
            work, bias, bias_type, activation, columns, count, (T *)y);
    });
    return tpi_cuda_launched(launch);
}
