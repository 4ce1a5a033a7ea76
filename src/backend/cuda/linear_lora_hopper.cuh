/* LINEAR_LORA on Hopper as one product: y = x·w + h·b, h = scale · x·a, in one set of f32 sums; and so are
 * two layers of one x side by side (twins), and the sum of up to three layers of their own x.
 *
 * The low-rank term is one more step of the inner loop: behind the tiles of x and w come those of h and b,
 * and neither h·b nor a partial y is ever in memory. h itself costs no pass over x either: in a block of rows
 * the first tiles of y, the makers, each multiply a slice of the x that they have in shared memory by a, too,
 * and publish these partial sums of h; all tiles of the block add them up. Makers run at the same time, so
 * the more of them there are, the less each has to do.
 *
 * Everything low-rank is f32 in value: a, h, b and the bias enter as sums of two bf16. With subscripts for
 * high and low, h's row is [h₁ h₂ h₁ 1 1] and b's columns are [b₁ b₁ b₂ bias₁ bias₂], so the bias is a rank,
 * too. Who wants h for itself gets it from the first column's tiles.
 *
 * Without ranks it is a product of a frozen matrix, whose tiles may end otherwise: what becomes of the sums
 * is a parameter.
 *
 * Layers that are one product have each its ranks, one layer's behind the other's. Of twins a tile has half
 * its columns from each, and b has zeros where the other's ranks are; gate and up of an MLP end in silu·mul.
 * Of a sum the layers' inner dimensions follow each other, and a has these zeros.
 *
 * A block keeps a processor to itself: one warp fetches, three prepare h, two warpgroups multiply, each 64 of
 * 128 rows; they meet in a ring of stages in shared memory. Blocks form pairs, one tile below the other, and
 * each fetches one half of w's tile for both. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_HOPPER_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_HOPPER_CUH

#include "backend/cuda/linear_lora_job.cuh"
#include "backend/cuda/linear_lora_store.cuh"

namespace {

#if TPI_WGMMA

constexpr int preparers = group - 32;
constexpr int pairs_together = 8; /* pairs of row blocks that share w's tiles in the second-level cache */
constexpr int published = 2;      /* the numbered barrier behind a warpgroup's own at which it has published */

/* Behind the stages lies h, then the barriers: of each stage, and of h. */
template <class L> struct ring : stage_ring<L::stages, L::stage_bytes> {
    __device__ uint32_t h() const { return this->memory + L::stages * L::stage_bytes; }
    __device__ uint32_t h_full() const { return this->barriers + L::stages * 16; }
    __device__ uint32_t h_empty() const { return h_full() + 8; }
};

struct tile {
    int pair, column;
};

/* Steps that h and b take. */
__device__ __forceinline__ int low_rank_steps(const lora_job &p) {
    return (p.h_columns + tile_inner - 1) / tile_inner;
}

/* Makers of h first; then, for a few pairs of row blocks at once, column after column. Where sums wait for
 * it, a division counts: mostly there is one. */
__device__ __forceinline__ tile tile_of(const lora_job &p, int i) {
    if (i < p.pairs * p.makers) return {i / p.makers, i % p.makers};
    i -= p.pairs * p.makers;
    const int rest = p.columns - p.makers;
    const int first = (unsigned)i / (unsigned)(pairs_together * rest) * pairs_together;
    const int together = min(pairs_together, p.pairs - first);
    i -= first * rest;
    const int column = together == pairs_together ? i / pairs_together : i / together;
    return {first + i - column * together, p.makers + column};
}

/* The steps [begin, end) in which a tile multiplies by a, too. They come `early` steps before their turn, so
 * that the last slice of h is there when the other tiles need it: the more makers, the longer it takes to add
 * their parts. No more, for tiles that go through x in different orders share less of the second cache. */
struct slice {
    int begin, end, early;
};

__device__ __forceinline__ slice slice_of(const lora_job &p, int i) {
    if (i >= p.pairs * p.makers) return {0, 0, 0};
    const int column = tile_of(p, i).column;
    const int begin = p.steps * column / p.makers, end = p.steps * (column + 1) / p.makers;
    return {begin, end, min(begin, max(8, 2 * p.makers))};
}

/* ---- fetching: one warp ---- */

/* Where a block's tile of y lies. */
struct place {
    int row, column; /* the first of x; of the block's half of w */
    int rank;        /* of the block in its pair */
};

template <class L> __device__ __forceinline__ place place_of(const lora_job &p, const tile &t) {
    const int rank = cluster_rank();
    const int column = p.twins ? t.column * L::half_columns : t.column * L::columns + rank * L::half_columns;
    return {(2 * t.pair + rank) * tile_rows, column, rank};
}

/* Fetches this block's half of a tile of w, or of b, for both blocks of the pair. */
template <class L>
__device__ __forceinline__ void fetch_half(const ring<L> &at, const CUtensorMap *map, int inner,
                                           const place &of) {
    const uint32_t to = at.data() + L::x_bytes + of.rank * (L::w_bytes / 2);
#pragma unroll
    for (int i = 0; i < L::half_boxes; i++)
        copy_box(to + i * 8192, map, L::outer_w ? of.column + i * 64 : inner,
                 L::outer_w ? inner : of.column, at.full(), 3);
}

/* The steps [from, to) of a tile, of a, too, if WITH_A. How long a free stage waits for its copies is what the
 * ring has to bridge: what can be is done outside the loop, and by the warp as one, not by a lane. */
template <bool WITH_A, class L>
__device__ __forceinline__ void fetch_steps(const tile_maps &maps, const lora_job &p, ring<L> &at,
                                            const place &of, int from, int to) {
    for (int layer = 0; from < to; layer++) {
        const int begin = layer > 0 ? p.end[layer - 1] : 0, end = min(to, p.end[layer]);
        const CUtensorMap *x = &maps.x[layer], *w = &maps.w[p.twins ? of.rank : layer];
#pragma unroll 1
        for (; from < end; from++, at.next()) {
            const int inner = (from - begin) * tile_inner;
            barrier_wait(at.empty(), at.parity ^ 1);
            if (!elected()) continue;
            barrier_expect(at.full(), L::x_bytes + L::w_bytes + (WITH_A ? L::a_bytes : 0));
            copy_box(at.data(), x, inner, of.row, at.full());
            fetch_half(at, w, inner, of);
            if (WITH_A)
                copy_box(at.data() + L::x_bytes + L::w_bytes, &maps.a, from * tile_inner, 0, at.full());
        }
    }
}

template <class L>
__device__ __forceinline__ void fetch_b(const tile_maps &maps, const lora_job &p, ring<L> &at,
                                        const place &of) {
    for (int c = 0; c < p.h_columns; c += tile_inner, at.next()) {
        barrier_wait(at.empty(), at.parity ^ 1);
        if (!elected()) continue;
        barrier_expect(at.full(), L::w_bytes);
        fetch_half(at, &maps.b[p.twins ? of.rank : 0], c, of);
    }
}

template <class L, class Ending>
__device__ void fetch(const tile_maps &maps, const lora_job &p, ring<L> at, const Ending &ending) {
    for (int i = (int)blockIdx.x / 2; i < p.pairs * p.columns; i += (int)gridDim.x / 2) {
        const tile t = tile_of(p, i);
        const slice made = slice_of(p, i);
        const place of = place_of<L>(p, t);
        fetch_steps<false>(maps, p, at, of, 0, made.begin - made.early);
        fetch_steps<true>(maps, p, at, of, made.begin, made.end);
        fetch_steps<false>(maps, p, at, of, made.begin - made.early, made.begin);
        fetch_steps<false>(maps, p, at, of, made.end, p.steps);
        fetch_b(maps, p, at, of);
        if constexpr (Ending::reads) ending.fetch(at, of.row, t.column * L::columns);
    }
}

/* ---- preparing h: three warps ---- */

/* Eight columns of a row of h; a row's places of 16 bytes are permuted by its number. */
__device__ __forceinline__ void put_eight(uint32_t h, int row, int eight, const uint32_t (&words)[4]) {
    const uint32_t at = h + eight / 8 * (tile_rows * 128) + row * 128 + ((eight ^ row) & 7) * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
}

/* Eight ranks of a row of h for who wants them. */
__device__ __forceinline__ void give_eight(const lora_job &p, int row, int eight, const float4 (&sum)[2]) {
    const int layer = eight * 8 / p.layer_rank, first = eight * 8 - layer * p.layer_rank;
    void *h = p.h[layer];
    if (row >= p.m || !h) return;
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

/* Adds up what the makers have published, and writes h₁ h₂ h₁. An item is eight ranks of a row; a thread has
 * ITEMS of them at once, so that enough loads are under way. */
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
            put_eight(h, row, e + 2 * eights, high);
            if (give) give_eight(p, block * tile_rows + row, e, sum[u]);
        }
    }
}

__device__ __forceinline__ void await(const unsigned *ready, unsigned wanted) {
    unsigned got;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(got) : "l"(ready) : "memory");
    while (got < wanted);
}

/* The columns behind h₁ h₂ h₁: the bias's two ones, and zeros to the end of the step; always the same. */
template <class L> __device__ void put_rest(const lora_job &p, uint32_t h, int mine) {
    const int begin = 3 * p.rank / 8, end = low_rank_steps(p) * tile_inner / 8;
    for (int i = mine + begin * tile_rows; i < end * tile_rows; i += preparers) {
        const bool one = i / tile_rows == begin && p.h_columns > 3 * p.rank;
        const uint32_t words[4] = {one ? 0x3f803f80u : 0u, 0, 0, 0};
        put_eight(h, i % tile_rows, i / tile_rows, words);
    }
}

/* Says for a maker's warpgroups that they have published: they go on multiplying. */
__device__ __forceinline__ void tell_published(const lora_job &p, int block) {
#pragma unroll
    for (int g = 1; g <= 2; g++) {
        numbered_sync(published + g, group + 32);
        if (elected())
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p.ready + block) : "memory");
    }
}

template <class L> __device__ void prepare(const lora_job &p, const ring<L> &at) {
    const int mine = (int)threadIdx.x - 32;
    uint32_t parity = 0;
    put_rest<L>(p, at.h(), mine);
    for (int i = (int)blockIdx.x / 2; i < p.pairs * p.columns; i += (int)gridDim.x / 2, parity ^= 1) {
        const tile t = tile_of(p, i);
        const int block = 2 * t.pair + cluster_rank();
        if (i < p.pairs * p.makers && mine < 32) tell_published(p, block);
        await(p.ready + block, 2 * p.makers);
        barrier_wait(at.h_empty(), parity ^ 1);
        sum_parts<L>(p, at.h(), block, mine, t.column == 0);
        stores_to_products();
        barrier_arrive(at.h_full());
    }
}

/* ---- multiplying: two warpgroups ---- */

/* Both blocks of the pair may fill the stage again, as far as this warpgroup is concerned. */
__device__ __forceinline__ void release(uint32_t empty) {
    if (threadIdx.x % group < 2) barrier_arrive(empty, threadIdx.x % group);
}

/* Of this warpgroup's rows of a tile of x, or of h. */
__device__ __forceinline__ uint64_t x_descriptor(uint32_t tile) {
    return inner_descriptor(tile + (threadIdx.x / group - 1) * (tile_rows / 2 * 128));
}
template <class L> __device__ __forceinline__ uint64_t w_descriptor(const ring<L> &at) {
    return L::outer_w ? outer_descriptor(at.data() + L::x_bytes) : inner_descriptor(at.data() + L::x_bytes);
}

/* sum ← x·w of the warpgroup's rows in so many steps, added to what is there if `keep`; and h ← x·a (high,
 * then low ranks) where the tile makes h. From step `low` on it is h·b, and h is waited for. A stage is
 * released when the products of the next one are on their way. */
template <bool MAKER, class L>
__device__ __forceinline__ void multiply(float (&sum)[L::columns / 2], float (&h)[L::ranks], ring<L> &at,
                                         int steps, int low, uint32_t h_parity, bool keep) {
    uint32_t used = 0;
    for (int i = 0; i < steps; i++, at.next()) {
        if (!MAKER && i == low) barrier_wait(at.h_full(), h_parity);
        barrier_wait(at.full(), at.parity);
        const uint64_t x = x_descriptor(MAKER || i < low ? at.data() : at.h() + (i - low) * L::x_bytes);
        const uint64_t w = w_descriptor(at);
        products_begin();
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma<L::outer_w>(sum, x + 2 * s, w + L::w_step * s, keep || i + s > 0);
        if (MAKER) {
            const uint64_t a = inner_descriptor(at.data() + L::x_bytes + L::w_bytes);
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma<false>(h, x + 2 * s, a + 2 * s, i + s > 0);
        }
        products_begun();
        products_wait<1>();
        if (used) release(used);
        used = at.empty();
    }
    products_wait<0>();
    settle(sum);
    if (MAKER) settle(h);
    if (used) release(used);
}

/* Writes a maker's part of h of the warpgroup's rows. */
template <class L> __device__ void publish(const lora_job &p, const float (&h)[L::ranks], const tile &t) {
    const int lane = threadIdx.x % 32, block = 2 * t.pair + cluster_rank();
    const int row = block * tile_rows + ((int)threadIdx.x - group) / 32 * 16 + lane / 4;
    float *to = p.partial + ((int64_t)t.column * p.pairs * pair_rows + row) * L::ranks + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < L::ranks / 8; j++) {
            const float *high = h + 4 * j + 2 * half, *low = high + L::ranks / 2;
            *(float2 *)(to + half * 8 * L::ranks + 8 * j) = {high[0] + low[0], high[1] + low[1]};
        }
    numbered_arrive(published + (int)threadIdx.x / group, group + 32);
}

/* `ending` takes a warpgroup's 64 rows of a tile from its registers; what it reads itself comes through the
 * ring. */
template <class L, class Ending>
__device__ void make_tiles(const lora_job &p, ring<L> at, const Ending &ending) {
    uint32_t parity = 0;
    for (int i = (int)blockIdx.x / 2; i < p.pairs * p.columns; i += (int)gridDim.x / 2, parity ^= 1) {
        const slice made = slice_of(p, i);
        float sum[L::columns / 2], h[L::ranks];
        const int before = made.begin - made.early, making = made.end - made.begin;
        if (making > 0) {
            multiply<false>(sum, h, at, before, before, parity, false);
            multiply<true>(sum, h, at, making, making, parity, before > 0);
            publish<L>(p, h, tile_of(p, i));
        }
        const int left = p.steps - before - making;
        multiply<false>(sum, h, at, left + low_rank_steps(p), left, parity, making > 0);
        const tile t = tile_of(p, i);
        const int row0 = (2 * t.pair + cluster_rank()) * tile_rows;
        if constexpr (Ending::reads)
            ending(p, sum, row0, t.column, at);
        else
            ending(p, sum, row0, t.column);
        /* Only now: who prepares the next h would read in these stores' way. */
        if (threadIdx.x % group == 0) barrier_arrive(at.h_empty());
    }
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#error "Hopper's matrix instructions need the architecture 90a, not 90"
#endif

template <class L, class Ending>
__global__ __launch_bounds__(threads, 1) void tile_kernel(const __grid_constant__ tile_maps maps,
                                                          const __grid_constant__ lora_job p,
                                                          const __grid_constant__ Ending ending) {
#if TPI_WGMMA
    extern __shared__ char shared[];
    ring<L> at;
    at.memory = (shared_address(shared) + 1023) / 1024 * 1024;
    at.barriers = at.h() + L::h_bytes;
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::stages; i++) {
            barrier_init(at.barriers + i * 16, 1);     /* full: the fetching thread; and bytes */
            barrier_init(at.barriers + i * 16 + 8, 4); /* empty: the pair's multiplying warpgroups */
        }
        barrier_init(at.h_full(), preparers);
        barrier_init(at.h_empty(), 2);
        barriers_made();
        prefetch_map(&maps.x[0]);
        prefetch_map(&maps.w[0]);
    }
    cluster_sync();
    wait_for_previous();
    const int warp = warp_number();
    if (warp < group / 32) {
        fewer_registers<104>();
        if (warp == 0)
            fetch(maps, p, at, ending);
        else if (p.rank > 0)
            prepare(p, at);
    } else {
        more_registers<200>();
        make_tiles(p, at, ending);
    }
    cluster_sync(); /* no block ends while its pair may still arrive at its barriers */
#endif
}

} // namespace

#endif
