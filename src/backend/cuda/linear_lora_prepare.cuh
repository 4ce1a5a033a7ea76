/* Three warps of a block prepare h for its tiles: the makers' parts are added up, and h's row is laid down as
 * the products want it, with the bias's ones; who wants h for itself gets it. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_PREPARE_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_PREPARE_CUH

#include "backend/cuda/linear_lora_progress.cuh"
#include "backend/cuda/linear_lora_tiles.cuh"

namespace {

#if TPI_WGMMA

constexpr int preparers = group - 32;

/* Eight columns of a row of h; a row's places of 16 bytes are permuted by its number. */
__device__ __forceinline__ void put_eight(uint32_t h, int row, int eight, const uint32_t (&words)[4]) {
    store_shared(h + eight / 8 * (tile_rows * 128) + row * 128 + ((eight ^ row) & 7) * 16, words);
}

/* Eight ranks of a row of h for who wants them. */
__device__ __forceinline__ void give_eight(const lora_job &p, int row, int eight, const float4 (&sum)[2]) {
    const int layer = eight * 8 / p.layer_rank, first = eight * 8 - layer * p.layer_rank;
    void *h = p.h[layer];
    if (row >= p.m || first >= p.own_rank || !h) return;
    const int64_t at = (int64_t)row * p.own_rank + first;
    const float all[8] = {sum[0].x, sum[0].y, sum[0].z, sum[0].w, sum[1].x, sum[1].y, sum[1].z, sum[1].w};
    if (p.own_rank % 8 != 0) { /* rows begin anywhere */
        for (int r = 0; r < 8 && first + r < p.own_rank; r++)
            if (p.h_wide)
                ((float *)h)[at + r] = p.scale * all[r];
            else
                ((bf16 *)h)[at + r] = __float2bfloat16_rn(p.scale * all[r]);
        return;
    }
    const float4 low = {p.scale * sum[0].x, p.scale * sum[0].y, p.scale * sum[0].z, p.scale * sum[0].w};
    const float4 high = {p.scale * sum[1].x, p.scale * sum[1].y, p.scale * sum[1].z, p.scale * sum[1].w};
    if (p.h_wide) {
        float4 *to = (float4 *)((float *)h + at);
        to[0] = low, to[1] = high;
    } else
        *(pack<bf16, 8> *)((bf16 *)h + at) = {__float2bfloat16_rn(low.x),  __float2bfloat16_rn(low.y),
                                              __float2bfloat16_rn(low.z),  __float2bfloat16_rn(low.w),
                                              __float2bfloat16_rn(high.x), __float2bfloat16_rn(high.y),
                                              __float2bfloat16_rn(high.z), __float2bfloat16_rn(high.w)};
}

/* Adds up what the makers have published, and writes h₁ h₂ h₁, or h₁ h₂. An item is eight ranks of a row; a
 * thread has ITEMS of them at once, so that enough loads are under way. */
template <class L>
__device__ __forceinline__ void sum_parts(const lora_job &p, uint32_t h, int block, int mine, bool give) {
    constexpr int ITEMS = 3;
    const int eights = p.rank / 8, items = tile_rows * eights;
    const int64_t next = (int64_t)p.pairs * pair_rows * L::ranks;
#pragma unroll 1
    for (int first = mine; first < items; first += ITEMS * preparers) {
        float4 sum[ITEMS][2] = {};
        const float *from = p.partial + (int64_t)block * tile_rows * L::ranks;
#pragma unroll 2
        for (int i = 0; i < p.makers; i++, from += next)
#pragma unroll
            for (int u = 0; u < ITEMS; u++) {
                const int item = min(first + u * preparers, items - 1);
                const float4 *part =
                    (const float4 *)(from + item % tile_rows * L::ranks + item / tile_rows * 8);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float4 x = __ldcg(part + j);
                    sum[u][j].x += x.x, sum[u][j].y += x.y, sum[u][j].z += x.z, sum[u][j].w += x.w;
                }
            }
#pragma unroll
        for (int u = 0; u < ITEMS; u++) {
            const int item = min(first + u * preparers, items - 1), row = item % tile_rows,
                      e = item / tile_rows;
            uint32_t high[4], low[4];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                split_pair(p.scale * sum[u][j].x, p.scale * sum[u][j].y, high[2 * j], low[2 * j]);
                split_pair(p.scale * sum[u][j].z, p.scale * sum[u][j].w, high[2 * j + 1], low[2 * j + 1]);
            }
            put_eight(h, row, e, high);
            put_eight(h, row, e + eights, low);
            if (L::parts == 2) put_eight(h, row, e + 2 * eights, high);
            if (give) give_eight(p, block * tile_rows + row, e, sum[u]);
        }
    }
}

/* The columns behind h's parts: the bias's two ones, and zeros to the end of the step; always the same. */
template <class L> __device__ void put_rest(const lora_job &p, uint32_t h, int mine) {
    const int begin = L::h_parts * p.rank / 8, end = low_rank_steps(p) * tile_inner / 8;
    for (int i = mine + begin * tile_rows; i < end * tile_rows; i += preparers) {
        const bool one = i / tile_rows == begin && p.h_columns > L::h_parts * p.rank;
        const uint32_t words[4] = {one ? 0x3f803f80u : 0u, 0, 0, 0};
        put_eight(h, i % tile_rows, i / tile_rows, words);
    }
}

/* Says for a maker's warpgroups that they have published: they go on multiplying. */
__device__ __forceinline__ void tell_published(int block) {
#pragma unroll
    for (int g = 1; g <= 2; g++) {
        numbered_sync(published + g, group + 32);
        if (elected()) tell(progress.ready + block);
    }
}

template <class L> __device__ void prepare(const lora_job &p, const ring<L> &at) {
    const int mine = (int)threadIdx.x - 32;
    uint32_t parity = 0;
    put_rest<L>(p, at.h(), mine);
    for (int i = (int)blockIdx.x / 2; i < p.pairs * p.columns; i += (int)gridDim.x / 2, parity ^= 1) {
        const tile t = tile_of(p, i);
        const int block = 2 * t.pair + cluster_rank();
        if (i < p.pairs * p.makers && mine < 32) tell_published(block);
        await(progress.ready + block, 2 * p.makers);
        barrier_wait(at.h_empty(), parity ^ 1);
        sum_parts<L>(p, at.h(), block, mine, t.column == 0);
        stores_to_products();
        barrier_arrive(at.h_full());
    }
    numbered_sync(prepared, preparers);
    if (mine == 0) leave(2 * p.pairs);
}

#endif

} // namespace

#endif
