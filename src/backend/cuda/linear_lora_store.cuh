/* How a tile of y leaves a warpgroup's registers: rounded, eight columns of a row at once, of twins each half
 * to its own y, with silu·mul where gate and up ask for it. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_STORE_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_STORE_CUH

#include "backend/cuda/linear_lora_job.cuh"
#include "backend/cuda/silu_mul.cuh"

namespace {

#if TPI_WGMMA

/* Of four lanes' 4 × 4 words, each lane's row becomes its column. */
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
        const bool upper = threadIdx.x & bit;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i + bit], bit);
            (upper ? words[i] : words[i + bit]) = got;
        }
    }
}

/* The thread's eight columns of a row, rounded: those of the tile's columns 32 · i ..., of the row `half`. */
template <int N> __device__ __forceinline__ uint4 rounded(const float (&sum)[N], int i, int half) {
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        words[j] = pair_of(__float2bfloat16_rn(sum[16 * i + 4 * j + 2 * half]),
                           __float2bfloat16_rn(sum[16 * i + 4 * j + 2 * half + 1]));
    transpose_quad(words);
    return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ int row_in_tile(int half) {
    return ((int)threadIdx.x - group) / 32 * 16 + (int)threadIdx.x % 32 / 4 + 8 * half;
}
__device__ __forceinline__ int column_in_tile(int i) {
    return (int)threadIdx.x % 4 * 8 + 32 * i;
}

/* The thread's row `half` of two. */
template <int N>
__device__ __forceinline__ void store_row(const lora_job &p, const float (&sum)[N], int half, int row0,
                                          int column0) {
    const int row = row0 + row_in_tile(half);
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
        const int column = column0 + column_in_tile(i);
        const uint4 eight = rounded(sum, i, half);
        if (row < p.m && column < p.n) *(uint4 *)(p.y[0] + (int64_t)row * p.n + column) = eight;
    }
}

/* silu(gate) · up of two numbers each, as they were rounded. */
__device__ __forceinline__ uint32_t silu_mul(uint32_t gate, uint32_t up) {
    const float g[2] = {__uint_as_float(gate << 16), __uint_as_float(gate & 0xffff0000u)};
    const float u[2] = {__uint_as_float(up << 16), __uint_as_float(up & 0xffff0000u)};
    return pair_of(__float2bfloat16_rn(g[0] * fast_sigmoid(g[0]) * u[0]),
                   __float2bfloat16_rn(g[1] * fast_sigmoid(g[1]) * u[1]));
}
__device__ __forceinline__ uint4 silu_mul(uint4 gate, uint4 up) {
    return {silu_mul(gate.x, up.x), silu_mul(gate.y, up.y), silu_mul(gate.z, up.z), silu_mul(gate.w, up.w)};
}

template <int N>
__device__ __forceinline__ void store_twins(const lora_job &p, const float (&sum)[N], int row0, int column0) {
#pragma unroll
    for (int i = 0; i < N / 32; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + row_in_tile(half), column = column0 + column_in_tile(i);
            const int64_t at = (int64_t)row * p.n + column;
            const uint4 first = rounded(sum, i, half), second = rounded(sum, i + N / 32, half);
            if (row >= p.m || column >= p.n) continue;
            *(uint4 *)(p.y[0] + at) = first;
            *(uint4 *)(p.y[1] + at) = second;
            if (p.gated) *(uint4 *)(p.gated + at) = silu_mul(first, second);
        }
}

#endif

/* A tile of rows from row0 on, column `tile` of tiles, goes to y. */
struct store_tiles {
    static constexpr bool reads = false;
    template <int N>
    __device__ __forceinline__ void operator()(const lora_job &p, const float (&sum)[N], int row0,
                                               int tile) const {
#if TPI_WGMMA
        if (p.twins)
            store_twins(p, sum, row0, tile * N);
        else
#pragma unroll
            for (int half = 0; half < 2; half++) store_row(p, sum, half, row0, tile * 2 * N);
#endif
    }
};

} // namespace

#endif
