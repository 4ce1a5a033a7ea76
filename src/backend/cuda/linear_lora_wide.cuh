/* h = scale · x·a of many ranks, as y's product reads it from memory: a row is h₁ h₂ h₁, and two ones for a
 * bias, all bf16; with subscripts for high and low.
 *
 * x·a is a product of tiles like others. a's high and low ranks are twins, so a thread has both sums of a
 * rank. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_WIDE_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_WIDE_CUH

#include "backend/cuda/linear_lora_store.cuh"

namespace {

using wide_layout = layout<128, 16, false>;

/* From a row of h to the next. */
constexpr int wide_leading(int rank) {
    return 3 * rank + 8;
}

/* How a tile ends: its ranks are split, and given to who wants them for themselves. */
struct keep_low_rank {
    static constexpr bool reads = false;
    bf16 *h; /* [m, wide_leading(rank)] */
    int rank;
    bool ones;

#if TPI_WGMMA
    /* Two neighbouring ranks of a row for who wants them. */
    __device__ __forceinline__ void give(const lora_job &p, int64_t row, int r, float first,
                                         float second) const {
        const float both[2] = {first, second};
        for (int i = 0; i < 2 && r + i < p.own_rank; i++)
            if (p.h_wide)
                ((float *)p.h[0])[row * p.own_rank + r + i] = both[i];
            else
                ((bf16 *)p.h[0])[row * p.own_rank + r + i] = __float2bfloat16_rn(both[i]);
    }
#endif

    template <int N>
    __device__ __forceinline__ void operator()(const lora_job &p, float (&sum)[N], int row0, int tile) const {
#if TPI_WGMMA
        const int first = tile * N; /* rank */
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const int row = row0 + row_in_tile(i / 2 % 2), r = first + i / 4 * 8 + (int)threadIdx.x % 4 * 2;
            sum[i] = p.scale * (sum[i] + sum[i + N / 2]);
            sum[i + N / 2] = __bfloat162float(rest_of(sum[i], __float2bfloat16_rn(sum[i])));
            if (i % 2 == 1 && p.h[0] && row < p.m) give(p, row, r, sum[i - 1], sum[i]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + row_in_tile(half);
            bf16 *to = h + (int64_t)row * wide_leading(rank);
#pragma unroll
            for (int i = 0; i < N / 32; i++) {
                const uint4 high = rounded(sum, i, half), low = rounded(sum, i + N / 32, half);
                const int r = first + column_in_tile(i);
                if (row >= p.m || r >= rank) continue;
                *(uint4 *)(to + r) = *(uint4 *)(to + 2 * rank + r) = high;
                *(uint4 *)(to + rank + r) = low;
            }
            if (ones && tile == 0 && threadIdx.x % 4 == 0 && row < p.m)
                *(uint32_t *)(to + 3 * rank) = 0x3f803f80u;
        }
#endif
    }
};

} // namespace

#endif
