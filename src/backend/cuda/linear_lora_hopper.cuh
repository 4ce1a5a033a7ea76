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
 * too. Of an a and b that are bf16 themselves there is no low part: they are read as they lie, h's row is
 * [h₁ h₂], and both meet the same b. Who wants h for itself gets it from the first column's tiles.
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

#include "backend/cuda/linear_lora_prepare.cuh"
#include "backend/cuda/linear_lora_store.cuh"

namespace {

#if TPI_WGMMA

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

/* A step of a. */
template <class L>
__device__ __forceinline__ void fetch_a(const ring<L> &at, const CUtensorMap *map, int inner) {
    const uint32_t to = at.data() + L::x_bytes + L::w_bytes;
    if constexpr (L::outer_a)
#pragma unroll
        for (int r = 0; r < L::ranks; r += 8) copy_box(to + r * 128, map, r, inner, at.full());
    else
        copy_box(to, map, inner, 0, at.full());
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
            if (WITH_A) fetch_a(at, &maps.a, from * tile_inner);
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

/* h ← x·a of a step, high ranks and then low ones where a is split. */
template <class L>
__device__ __forceinline__ void multiply_a(float (&h)[L::h_sums], const ring<L> &at, uint64_t x, bool keep) {
    const uint32_t tile = at.data() + L::x_bytes + L::w_bytes;
    const uint64_t a = L::outer_a ? narrow_descriptor(tile) : inner_descriptor(tile);
#pragma unroll
    for (int s = 0; s < 4; s++)
        wgmma<L::outer_a>(h, x + 2 * s, a + (L::outer_a ? 16 : 2) * s, keep || s > 0);
}

/* A step's products are begun: the stage of the step before is released. */
template <class L> __device__ __forceinline__ void step_begun(ring<L> &at, uint32_t *used) {
    products_begun();
    products_wait<1>();
    if (*used) release(*used);
    *used = at.empty();
    at.next();
}

/* sum ← sum + h·b of a b that is not split: one step, in which both parts of h meet the same rows of b. */
template <class L>
__device__ __forceinline__ void multiply_b(float (&sum)[L::columns / 2], ring<L> &at, uint32_t h_parity,
                                           uint32_t *used) {
    barrier_wait(at.h_full(), h_parity);
    barrier_wait(at.full(), at.parity);
    const uint64_t h = x_descriptor(at.h()), b = w_descriptor(at);
    products_begin();
#pragma unroll
    for (int s = 0; s < L::ranks / 8; s++)
        wgmma<L::outer_w>(sum, h + 2 * s, b + L::w_step * (s % (L::ranks / 16)), true);
    step_begun(at, used);
}

/* sum ← x·w of the warpgroup's rows in so many steps, added to what is there if `keep`; and h ← x·a where the
 * tile makes h. From step `low` on it is h·b, and h is waited for. */
template <bool MAKER, class L>
__device__ __forceinline__ void multiply(float (&sum)[L::columns / 2], float (&h)[L::h_sums], ring<L> &at,
                                         int steps, int low, uint32_t h_parity, bool keep) {
    const int alike = L::parts == 1 && !MAKER ? min(low, steps) : steps;
    uint32_t used = 0;
    for (int i = 0; i < alike; i++) {
        if (!MAKER && i == low) barrier_wait(at.h_full(), h_parity);
        barrier_wait(at.full(), at.parity);
        const uint64_t x = x_descriptor(MAKER || i < low ? at.data() : at.h() + (i - low) * L::x_bytes);
        const uint64_t w = w_descriptor(at);
        products_begin();
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma<L::outer_w>(sum, x + 2 * s, w + L::w_step * s, keep || i + s > 0);
        if (MAKER) multiply_a(h, at, x, i > 0);
        step_begun(at, &used);
    }
    if (alike < steps) multiply_b(sum, at, h_parity, &used);
    products_wait<0>();
    settle(sum);
    if (MAKER) settle(h);
    if (used) release(used);
}

/* Writes a maker's part of h of the warpgroup's rows. */
template <class L> __device__ void publish(const lora_job &p, const float (&h)[L::h_sums], const tile &t) {
    const int lane = threadIdx.x % 32, block = 2 * t.pair + cluster_rank();
    const int row = block * tile_rows + ((int)threadIdx.x - group) / 32 * 16 + lane / 4;
    float *to = p.partial + ((int64_t)t.column * p.pairs * pair_rows + row) * L::ranks + lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < L::ranks / 8; j++) {
            float2 both = {h[4 * j + 2 * half], h[4 * j + 2 * half + 1]};
            if constexpr (L::parts == 2) {
                const float *low = h + L::ranks / 2 + 4 * j + 2 * half;
                both.x += low[0], both.y += low[1];
            }
            *(float2 *)(to + half * 8 * L::ranks + 8 * j) = both;
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
        float sum[L::columns / 2], h[L::h_sums];
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
