/* LINEAR_LORA on Hopper as one product: y = x·w + h·b, h = scale · x·a, in one set of f32 sums.
 *
 * The low-rank term is one more step of the inner loop: behind the tiles of x and w come those of h and b,
 * and neither h·b nor a partial y is ever in memory. h itself costs no pass over x either: of the tiles of y
 * in a block of rows, the first ones multiply the x that they have in shared memory by columns of a too, and
 * publish their ranks of h; all others wait for these, which come first in the order of tiles.
 *
 * Everything low-rank is f32 in value: a, h and b enter as sums of two bf16. With subscripts for high and low,
 * h's row is [h₁ h₂ h₁ 1] and b's columns are [b₁ b₁ b₂ bias], so the bias is a rank, too.
 *
 * A block keeps a processor to itself: one warp fetches, two warpgroups multiply, each 64 of 128 rows; they
 * meet in a ring of stages in shared memory. Blocks form pairs, one tile below the other, and each fetches one
 * half of w's tile for both. A first small kernel splits a and b. */
#include "backend/cuda/hopper.cuh"
#include "backend/cuda/lora.h"
#include "backend/cuda/tensor.cuh"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

namespace {

using bf16 = __nv_bfloat16;

constexpr int tile_rows = 128, tile_inner = 64, threads = 384, group = 128; /* threads of a warpgroup */
constexpr int pair_rows = 2 * tile_rows;
constexpr int pairs_together = 8; /* pairs of row blocks that share w's tiles in the second-level cache */

/* What a tile of COLUMNS columns is made of; ranks: those of h that one tile makes. */
template <int COLUMNS, bool OUTER_W> struct layout {
    static constexpr int columns = COLUMNS, ranks = COLUMNS > 128 ? 8 : 16, stages = COLUMNS > 128 ? 4 : 6;
    static constexpr int x_bytes = tile_rows * tile_inner * 2, w_bytes = COLUMNS * tile_inner * 2;
    static constexpr int a_bytes = 2 * ranks * tile_inner * 2, stage_bytes = x_bytes + w_bytes + a_bytes;
    static constexpr int shared_bytes = stages * (stage_bytes + 16) + 1024; /* barriers; alignment */
    static constexpr bool outer_w = OUTER_W; /* w's rows run along y's columns, not along the inner dimension */
    static constexpr int w_step = OUTER_W ? 128 : 2; /* of a descriptor, for 16 inner indices */
};

/* Tiles in global memory, as the copy engine knows them: [rows, inner] of x, a, h; of w and b likewise, or
 * [inner, columns]. */
struct tile_maps {
    CUtensorMap x, w, a, h, b;
};

struct lora_job {
    bf16 *y, *h;
    unsigned *ready;    /* of a block of rows: warpgroups that have published their ranks of h */
    int m, n, k, rank;
    int pairs, columns; /* tiles of y: pairs of them down, and across */
    int makers;         /* tiles of a row block that make h */
    int h_columns, h_leading;
    float scale;
    bool bias;
};

/* ---- the first kernel: a and b as bf16 ---- */

struct split_job {
    const void *a, *b; /* f32 or bf16 */
    const bf16 *bias;  /* NULL: none */
    bf16 *to_a, *to_b; /* a: for each maker its ranks' high, then low rows [k] */
    unsigned *ready;
    int64_t a_k, a_r, b_r, b_n; /* strides of a [k, rank] and b [rank, n] */
    int64_t to_r, to_n;         /* and of to_b */
    int k, n, rank, maker_ranks, blocks;
};

template <typename A> __device__ void split(const A *from, bf16 &high, bf16 &low) {
    const float x = to_f32(*from);
    high = __float2bfloat16_rn(x);
    low = rest_of(x, high);
}

template <typename A> __global__ void split_kernel(split_job p) {
#if __CUDA_ARCH__ >= 900
    launch_dependents();
#endif
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    bf16 high, low;
    if (i < p.blocks) p.ready[i] = 0;
    if (i < p.rank * p.k) {
        const int r = i / p.k, k = i % p.k;
        split((const A *)p.a + k * p.a_k + r * p.a_r, high, low);
        bf16 *to = p.to_a + (int64_t)(r / p.maker_ranks * p.maker_ranks + r) * p.k + k;
        to[0] = high;
        to[(int64_t)p.maker_ranks * p.k] = low;
        return;
    }
    i -= p.rank * p.k;
    const int ranks = p.rank + (p.bias ? 1 : 0);
    if (i >= ranks * p.n) return;
    const bool along_ranks = p.to_r == 1;
    const int r = along_ranks ? i % ranks : i / p.n, n = along_ranks ? i / ranks : i % p.n;
    bf16 *to = p.to_b + r * p.to_r + n * p.to_n;
    if (r == p.rank) {
        to[2 * p.rank * p.to_r] = p.bias[n];
    } else {
        split((const A *)p.b + r * p.b_r + n * p.b_n, high, low);
        to[0] = high;
        to[p.rank * p.to_r] = high;
        to[2 * p.rank * p.to_r] = low;
    }
}

/* ---- the second kernel ---- */

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* A place in the ring, and the parity of its present use. */
template <class L> struct ring {
    uint32_t memory, barriers;
    int stage = 0;
    uint32_t parity = 0;

    __device__ uint32_t data() const { return memory + stage * L::stage_bytes; }
    __device__ uint32_t full() const { return barriers + stage * 16; }
    __device__ uint32_t empty() const { return full() + 8; }
    __device__ void next() {
        if (++stage == L::stages) stage = 0, parity ^= 1;
    }
};

struct tile {
    int pair, column;
};

/* Makers of h first; then, for a few pairs of row blocks at once, column after column. */
__device__ __forceinline__ tile tile_of(const lora_job &p, int i) {
    if (i < p.pairs * p.makers) return {i / p.makers, i % p.makers};
    i -= p.pairs * p.makers;
    const int rest = p.columns - p.makers, first = i / (pairs_together * rest) * pairs_together;
    const int together = min(pairs_together, p.pairs - first);
    i -= first * rest;
    return {first + i % together, p.makers + i / together};
}

/* Fetches this block's half of a tile of w, or of b, for both blocks of the pair. */
template <class L>
__device__ __forceinline__ void fetch_half(const ring<L> &at, const CUtensorMap *map, int inner, int column,
                                           int rank) {
    const uint32_t to = at.data() + L::x_bytes + rank * (L::w_bytes / 2);
    column += rank * (L::columns / 2);
    if constexpr (!L::outer_w) copy_box(to, map, inner, column, at.full(), 3);
#pragma unroll
    for (int i = 0; L::outer_w && i < L::columns / 128; i++)
        copy_box(to + i * 8192, map, column + i * 64, inner, at.full(), 3);
}

/* Waits until h's rows of a block are there, for copies. */
__device__ __forceinline__ void await_h(const unsigned *ready, unsigned wanted) {
    unsigned got;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(got) : "l"(ready) : "memory");
    while (got < wanted);
    fence_async();
}

/* What the fetching thread does. */
template <class L> __device__ void fetch(const tile_maps &maps, const lora_job &p, ring<L> at) {
    const int rank = cluster_rank(), step = (int)gridDim.x / 2;
    for (int i = (int)blockIdx.x / 2; i < p.pairs * p.columns; i += step) {
        const tile t = tile_of(p, i);
        const int block = 2 * t.pair + rank, row = block * tile_rows, column = t.column * L::columns;
        const bool maker = t.column < p.makers;
        for (int k = 0; k < p.k; k += tile_inner, at.next()) {
            barrier_wait(at.empty(), at.parity ^ 1);
            barrier_expect(at.full(), L::x_bytes + L::w_bytes + (maker ? L::a_bytes : 0));
            copy_box(at.data(), &maps.x, k, row, at.full());
            fetch_half(at, &maps.w, k, column, rank);
            if (maker)
                copy_box(at.data() + L::x_bytes + L::w_bytes, &maps.a, k, t.column * 2 * L::ranks, at.full());
        }
        await_h(p.ready + block, 2 * p.makers);
        for (int c = 0; c < p.h_columns; c += tile_inner, at.next()) {
            barrier_wait(at.empty(), at.parity ^ 1);
            barrier_expect(at.full(), L::x_bytes + L::w_bytes);
            copy_box(at.data(), &maps.h, c, row, at.full());
            fetch_half(at, &maps.b, c, column, rank);
        }
    }
}

/* Both blocks of the pair may fill the stage again, as far as this warpgroup is concerned. */
__device__ __forceinline__ void release(uint32_t empty) {
    if (threadIdx.x % group < 2) barrier_arrive(empty, threadIdx.x % group);
}

template <class L> __device__ __forceinline__ uint64_t x_descriptor(const ring<L> &at) {
    return inner_descriptor(at.data() + (threadIdx.x / group - 1) * (L::x_bytes / 2));
}
template <class L> __device__ __forceinline__ uint64_t w_descriptor(const ring<L> &at) {
    return L::outer_w ? outer_descriptor(at.data() + L::x_bytes) : inner_descriptor(at.data() + L::x_bytes);
}

/* sum ← x·w of the warpgroup's rows, and x·a (high, then low ranks) where the tile makes h. A stage is released
 * when the products of the next one are on their way. */
template <bool MAKER, class L>
__device__ __forceinline__ void multiply(float (&sum)[L::columns / 2], float (&low_rank)[L::ranks],
                                         ring<L> &at, int k) {
    uint32_t used = 0;
    for (int i = 0; i < k; i += tile_inner, at.next()) {
        barrier_wait(at.full(), at.parity);
        const uint64_t x = x_descriptor(at), w = w_descriptor(at);
        wgmma_begin();
#pragma unroll
        for (int s = 0; s < 4; s++) wgmma<L::outer_w>(sum, x + 2 * s, w + L::w_step * s, i + s > 0);
        if (MAKER) {
            const uint64_t a = inner_descriptor(at.data() + L::x_bytes + L::w_bytes);
#pragma unroll
            for (int s = 0; s < 4; s++) wgmma<false>(low_rank, x + 2 * s, a + 2 * s, i + s > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (used) release(used);
        used = at.empty();
    }
    wgmma_wait<0>();
    settle(sum);
    if (MAKER) settle(low_rank);
    release(used);
}

/* sum += h·b. */
template <class L>
__device__ __forceinline__ void add_low_rank(float (&sum)[L::columns / 2], ring<L> &at, int h_columns) {
    for (int left = h_columns; left > 0; left -= tile_inner, at.next()) {
        barrier_wait(at.full(), at.parity);
        uint64_t h = x_descriptor(at), b = w_descriptor(at);
        const int end = min(left, tile_inner);
        wgmma_begin();
#pragma unroll 1
        for (int c = 0; c < end; c += 16, h += 2, b += L::w_step) wgmma<L::outer_w>(sum, h, b, true);
        wgmma_commit();
        wgmma_wait<0>();
        settle(sum);
        release(at.empty());
    }
}

/* Writes the warpgroup's rows of a maker's ranks of h, and says so. */
template <class L>
__device__ void publish(const lora_job &p, const float (&low_rank)[L::ranks], const tile &t) {
    const int lane = threadIdx.x % 32, block = 2 * t.pair + cluster_rank();
    const int row0 = block * tile_rows + ((int)threadIdx.x - group) / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bf16 *row = p.h + (int64_t)(row0 + 8 * half) * p.h_leading;
#pragma unroll
        for (int j = 0; j < L::ranks / 8; j++) {
            const int r = t.column * L::ranks + 8 * j + lane % 4 * 2;
            if (r >= p.rank) continue; /* ranks are a multiple of 8 */
            const float *h = low_rank + 4 * j + 2 * half, *rest = h + L::ranks / 2;
            uint32_t high, low;
            split_pair(p.scale * (h[0] + rest[0]), p.scale * (h[1] + rest[1]), high, low);
            *(uint32_t *)(row + r) = high;
            *(uint32_t *)(row + r + p.rank) = low;
            *(uint32_t *)(row + r + 2 * p.rank) = high;
        }
        if (p.bias && t.column == 0 && lane % 4 == 0) row[3 * p.rank] = __float2bfloat16_rn(1.0f);
    }
    fence_async();
    warpgroup_sync(threadIdx.x / group);
    if (threadIdx.x % group == 0)
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p.ready + block) : "memory");
}

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

/* Rounds the sums, and stores eight columns of a row at once. */
template <int N>
__device__ __forceinline__ void store(const lora_job &p, const float (&sum)[N], int row0, int column0) {
    const int lane = threadIdx.x % 32;
    row0 += ((int)threadIdx.x - group) / 32 * 16 + lane / 4;
    column0 += lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < N / 16; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + 8 * half, column = column0 + 32 * i;
            uint32_t words[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                words[j] = pair_of(__float2bfloat16_rn(sum[16 * i + 4 * j + 2 * half]),
                                   __float2bfloat16_rn(sum[16 * i + 4 * j + 2 * half + 1]));
            transpose_quad(words);
            if (row < p.m && column < p.n)
                *(uint4 *)(p.y + (int64_t)row * p.n + column) = {words[0], words[1], words[2], words[3]};
        }
}

/* What a multiplying warpgroup does. */
template <class L> __device__ void make_tiles(const lora_job &p, ring<L> at) {
    const int rank = cluster_rank(), step = (int)gridDim.x / 2;
    for (int i = (int)blockIdx.x / 2; i < p.pairs * p.columns; i += step) {
        const tile t = tile_of(p, i);
        float sum[L::columns / 2], low_rank[L::ranks];
        if (t.column < p.makers) {
            multiply<true>(sum, low_rank, at, p.k);
            publish<L>(p, low_rank, t);
        } else {
            multiply<false>(sum, low_rank, at, p.k);
        }
        add_low_rank(sum, at, p.h_columns);
        store(p, sum, (2 * t.pair + rank) * tile_rows, t.column * L::columns);
    }
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
#error "Hopper's matrix instructions need the architecture 90a, not 90"
#endif

template <class L>
__global__ __launch_bounds__(threads, 1) void lora_kernel(const __grid_constant__ tile_maps maps,
                                                          const lora_job p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ char shared[];
    ring<L> at;
    at.memory = (shared_address(shared) + 1023) / 1024 * 1024;
    at.barriers = at.memory + L::stages * L::stage_bytes;
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::stages; i++) {
            barrier_init(at.barriers + i * 16, 1);     /* full: the fetching thread; and bytes */
            barrier_init(at.barriers + i * 16 + 8, 4); /* empty: the pair's multiplying warpgroups */
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        prefetch_map(&maps.x);
        prefetch_map(&maps.w);
    }
    cluster_sync();
    wait_for_previous_kernel();
    if (threadIdx.x < group) {
        fewer_registers<40>();
        if (threadIdx.x == 0) fetch(maps, p, at);
    } else {
        more_registers<232>();
        make_tiles(p, at);
    }
    cluster_sync(); /* no block ends while its pair may still arrive at its barriers */
#endif
}

/* ---- host ---- */

/* Where things stand in scratch. */
struct pieces {
    size_t h, a, b, ready, end;
};

pieces pieces_of(const tpi_layer &l, int maker_ranks) {
    const int64_t blocks = tpi_div_up(l.m, pair_rows) * 2, h_leading = 3 * l.rank + 8;
    pieces p = {};
    p.h = tpi_piece(&p.end, (size_t)(blocks * tile_rows * h_leading) * sizeof(bf16));
    p.a = tpi_piece(&p.end, (size_t)(tpi_div_up(l.rank, maker_ranks) * 2 * maker_ranks * l.k) * sizeof(bf16));
    p.b = tpi_piece(&p.end, (size_t)(h_leading * l.n) * sizeof(bf16));
    p.ready = tpi_piece(&p.end, (size_t)blocks * sizeof(unsigned));
    return p;
}

using encode_fn = decltype(&cuTensorMapEncodeTiled);

encode_fn encoder() {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess)
        return nullptr;
    return found == cudaDriverEntryPointSuccess ? (encode_fn)function : nullptr;
}

/* A map of [rows, columns] whose boxes are [box_rows, 64]; what they reach beyond it reads as zeros. */
bool encode(encode_fn function, CUtensorMap *map, const void *data, int64_t rows, int64_t columns,
            int64_t leading, int box_rows) {
    const cuuint64_t sizes[2] = {(cuuint64_t)columns, (cuuint64_t)rows};
    const cuuint64_t strides[1] = {(cuuint64_t)leading * sizeof(bf16)};
    const cuuint32_t box[2] = {tile_inner, (cuuint32_t)box_rows}, steps[2] = {1, 1};
    return function(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, sizes, strides, box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* A map of w, or of b, for halves of tiles of `columns` columns: [inner, n], or [n, inner]. */
bool encode_half(encode_fn function, CUtensorMap *map, const void *data, int64_t inner, int64_t n,
                 int64_t leading, bool outer, int columns) {
    return outer ? encode(function, map, data, inner, n, leading, tile_inner)
                 : encode(function, map, data, n, inner, leading, columns / 2);
}

template <class L>
bool make_maps(tile_maps *maps, const tpi_launch *launch, const tpi_layer &l, const lora_job &job,
               const split_job &split) {
    const encode_fn f = encoder();
    const int64_t b_leading = L::outer_w ? split.to_r : split.to_n;
    return f && encode(f, &maps->x, tpi_in(launch, 0), l.m, l.k, l.mx.leading, tile_rows) &&
           encode_half(f, &maps->w, tpi_in(launch, l.w), l.k, l.n, l.mw.leading, L::outer_w, L::columns) &&
           encode(f, &maps->a, split.to_a, 2 * L::ranks * job.makers, l.k, l.k, 2 * L::ranks) &&
           encode(f, &maps->h, job.h, (int64_t)job.pairs * pair_rows, job.h_columns, job.h_leading,
                  tile_rows) &&
           encode_half(f, &maps->b, split.to_b, job.h_columns, l.n, b_leading, L::outer_w, L::columns);
}

template <class L> lora_job job_of(const tpi_launch *launch, const tpi_layer &l, const pieces &at) {
    char *scratch = (char *)tpi_scratch(launch);
    lora_job job = {};
    job.y = (bf16 *)tpi_out(launch, 0);
    job.h = (bf16 *)(scratch + at.h);
    job.ready = (unsigned *)(scratch + at.ready);
    job.m = (int)l.m, job.n = (int)l.n, job.k = (int)l.k, job.rank = (int)l.rank;
    job.pairs = (int)tpi_div_up(l.m, pair_rows), job.columns = (int)tpi_div_up(l.n, L::columns);
    job.makers = (int)tpi_div_up(l.rank, L::ranks);
    job.bias = l.bias != 0;
    job.h_columns = 3 * job.rank + job.bias, job.h_leading = 3 * job.rank + 8;
    job.scale = l.scale;
    return job;
}

template <class L>
split_job split_of(const tpi_launch *launch, const tpi_layer &l, const pieces &at, const lora_job &job) {
    char *scratch = (char *)tpi_scratch(launch);
    split_job s = {};
    s.a = tpi_in(launch, l.a), s.b = tpi_in(launch, l.b);
    s.bias = l.bias ? (const bf16 *)tpi_in(launch, l.bias) : nullptr;
    s.to_a = (bf16 *)(scratch + at.a), s.to_b = (bf16 *)(scratch + at.b);
    s.ready = job.ready;
    s.a_k = l.ma.transposed ? 1 : l.ma.leading, s.a_r = l.ma.transposed ? l.ma.leading : 1;
    s.b_r = l.mb.transposed ? 1 : l.mb.leading, s.b_n = l.mb.transposed ? l.mb.leading : 1;
    s.to_r = L::outer_w ? job.n : 1, s.to_n = L::outer_w ? 1 : job.h_leading;
    s.k = job.k, s.n = job.n, s.rank = job.rank;
    s.maker_ranks = L::ranks;
    s.blocks = 2 * job.pairs;
    return s;
}

tp_status start_split(const tpi_launch *launch, const split_job &s, tp_dtype dtype) {
    const int64_t items = (int64_t)s.rank * s.k + (int64_t)(s.rank + (s.bias ? 1 : 0)) * s.n;
    const unsigned blocks = (unsigned)tpi_div_up(items > s.blocks ? items : s.blocks, 256);
    if (dtype == TP_F32)
        split_kernel<float><<<blocks, 256, 0, tpi_cuda_of(launch)->stream>>>(s);
    else
        split_kernel<bf16><<<blocks, 256, 0, tpi_cuda_of(launch)->stream>>>(s);
    return tpi_cuda_launched(launch);
}

/* As many pairs as can be there at once: tiles wait for each other. */
template <class L>
tp_status start_product(const tpi_launch *launch, const tile_maps &maps, const lora_job &job) {
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {2, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)tpi_cuda_of(launch)->processors / 2 * 2);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = L::shared_bytes;
    config.stream = tpi_cuda_of(launch)->stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    int resident = 0;
    cudaError_t error = cudaFuncSetAttribute(lora_kernel<L>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             L::shared_bytes);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&resident, lora_kernel<L>, &config);
    if (error != cudaSuccess) return tpi_cuda_check(error, launch);
    if (getenv("TELL")) fprintf(stderr, "resident %d\n", resident);
    const int tiles = job.pairs * job.columns, clusters = resident < tiles ? resident : tiles;
    config.gridDim = dim3(2 * (unsigned)clusters);
    return tpi_cuda_check(cudaLaunchKernelEx(&config, lora_kernel<L>, maps, job), launch);
}

template <class L> tp_status run(const tpi_launch *launch, const tpi_layer &l) {
    const pieces at = pieces_of(l, L::ranks);
    const lora_job job = job_of<L>(launch, l, at);
    const split_job split = split_of<L>(launch, l, at, job);
    tile_maps maps;
    if (!make_maps<L>(&maps, launch, l, job, split))
        return tpi_fail(TP_EDEVICE, "cuda:%d: linear_lora: the driver makes no tensor maps",
                        tpi_cuda_of(launch)->index);
    TPI_TRY(start_split(launch, split, l.ma.dtype));
    return start_product<L>(launch, maps, job);
}

/* A row of tiles must be able to make all of h. */
template <class L> bool enough_makers(const tpi_layer &l) {
    return tpi_div_up(l.rank, L::ranks) <= tpi_div_up(l.n, L::columns);
}

bool narrow(const tpi_layer &l) {
    return l.n <= 128 || !enough_makers<layout<256, false>>(l);
}

} // namespace

size_t tpi_cuda_lora_hopper_scratch(const tpi_layer *l) {
    return pieces_of(*l, 16).end;
}

/* Copies start at multiples of 16 bytes, and so do their rows; makers of h are there at the same time. */
bool tpi_cuda_lora_hopper_fits(const tpi_launch *launch, const tpi_layer *l) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const uintptr_t places = (uintptr_t)tpi_in(launch, 0) | (uintptr_t)tpi_in(launch, l->w) |
                             (uintptr_t)tpi_out(launch, 0);
    const bool ints = l->m < INT_MAX - pair_rows && l->n < INT_MAX / 256 && l->k < INT_MAX / 256;
    return cuda->capability == 90 && cuda->processors >= 64 && ints && places % 16 == 0 &&
           l->mw.leading % 8 == 0 && (!narrow(*l) || enough_makers<layout<128, false>>(*l));
}

tp_status tpi_cuda_lora_hopper(const tpi_launch *launch, const tpi_layer *l) {
    if (narrow(*l))
        return l->mw.transposed ? run<layout<128, false>>(launch, *l) : run<layout<128, true>>(launch, *l);
    return l->mw.transposed ? run<layout<256, false>>(launch, *l) : run<layout<256, true>>(launch, *l);
}
