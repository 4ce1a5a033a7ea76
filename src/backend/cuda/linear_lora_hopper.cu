/* LINEAR_LORA on Hopper: the small kernel that splits a and b into high and low bf16, and the launch of the
 * product, which begins while the small kernel is ending. The product: linear_lora_hopper.cuh. */
#include "backend/cuda/linear_lora_hopper.cuh"
#include "backend/cuda/lora.h"

#include <limits.h>

namespace {

struct split_job {
    const void *a, *b; /* f32 or bf16 */
    const void *bias;  /* NULL: none */
    bf16 *to_a, *to_b; /* a: [RANKS high ranks, RANKS low ranks; k] */
    unsigned *ready;
    int64_t a_k, a_r, b_r, b_n; /* strides of a [k, rank] and b [rank, n] */
    int64_t to_r, to_n;         /* and of to_b */
    int k, n, rank, own_rank, ranks, blocks;
    bool wide_bias; /* f32, else bf16 */
};

__device__ void split(float x, bf16 &high, bf16 &low) {
    high = __float2bfloat16_rn(x);
    low = rest_of(x, high);
}

template <typename A> __global__ void split_kernel(split_job p) {
    let_next_start();
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    bf16 high, low;
    if (i < p.blocks) p.ready[i] = 0;
    if (i < p.rank * p.k) {
        const int r = i / p.k, k = i % p.k;
        split(r < p.own_rank ? to_f32(((const A *)p.a)[k * p.a_k + r * p.a_r]) : 0.0f, high, low);
        p.to_a[(int64_t)r * p.k + k] = high;
        p.to_a[(int64_t)(p.ranks + r) * p.k + k] = low;
        return;
    }
    i -= p.rank * p.k;
    const int ranks = p.rank + (p.bias ? 1 : 0);
    if (i >= ranks * p.n) return;
    const bool along_ranks = p.to_r == 1;
    const int r = along_ranks ? i % ranks : i / p.n, n = along_ranks ? i / ranks : i % p.n;
    bf16 *to = p.to_b + r * p.to_r + n * p.to_n;
    if (r == p.rank) {
        split(p.wide_bias ? ((const float *)p.bias)[n] : to_f32(((const bf16 *)p.bias)[n]), high, low);
        to[2 * p.rank * p.to_r] = high;
        to[(2 * p.rank + 1) * p.to_r] = low;
    } else {
        split(r < p.own_rank ? to_f32(((const A *)p.b)[r * p.b_r + n * p.b_n]) : 0.0f, high, low);
        to[0] = high;
        to[p.rank * p.to_r] = high;
        to[2 * p.rank * p.to_r] = low;
    }
}

/* ---- host ---- */

/* With the zeros that are added. */
int64_t rank_of(const tpi_layer &l) {
    return tpi_div_up(l.rank, 8) * 8;
}

/* Where things stand in scratch. */
struct pieces {
    size_t partial, a, b, ready, end;
};

pieces pieces_of(const tpi_layer &l, int ranks) {
    const int64_t pairs = tpi_div_up(l.m, pair_rows), makers = pairs > most_makers ? pairs : most_makers;
    pieces p = {};
    p.partial = tpi_piece(&p.end, (size_t)(makers * pair_rows * ranks) * sizeof(float));
    p.a = tpi_piece(&p.end, (size_t)(2 * ranks * l.k) * sizeof(bf16));
    p.b = tpi_piece(&p.end, (size_t)((3 * rank_of(l) + 8) * l.n) * sizeof(bf16));
    p.ready = tpi_piece(&p.end, (size_t)(2 * pairs) * sizeof(unsigned));
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

/* A map of w, or of b, for halves of tiles: [inner, n], or [n, inner]. */
template <class L>
bool encode_half(encode_fn function, CUtensorMap *map, const void *data, int64_t inner, int64_t n,
                 int64_t leading) {
    return L::outer_w ? encode(function, map, data, inner, n, leading, tile_inner)
                      : encode(function, map, data, n, inner, leading, L::half_columns);
}

template <class L>
bool make_maps(tile_maps *maps, const tpi_launch *launch, const tpi_layer &l, const lora_job &job,
               const split_job &split) {
    const encode_fn f = encoder();
    const int64_t b_leading = L::outer_w ? split.to_r : split.to_n;
    return f && encode(f, &maps->x, tpi_in(launch, 0), l.m, l.k, l.mx.leading, tile_rows) &&
           encode_half<L>(f, &maps->w, tpi_in(launch, l.w), l.k, l.n, l.mw.leading) &&
           encode(f, &maps->a, split.to_a, 2 * L::ranks, l.k, l.k, 2 * L::ranks) &&
           encode_half<L>(f, &maps->b, split.to_b, job.h_columns, l.n, b_leading);
}

template <class L>
lora_job job_of(const tpi_launch *launch, const tpi_layer &l, const pieces &at, int clusters) {
    char *scratch = (char *)tpi_scratch(launch);
    lora_job job = {};
    job.y = (bf16 *)tpi_out(launch, 0);
    job.partial = (float *)(scratch + at.partial);
    job.ready = (unsigned *)(scratch + at.ready);
    job.m = (int)l.m, job.n = (int)l.n, job.rank = (int)rank_of(l);
    job.own_rank = (int)l.rank;
    job.pairs = (int)tpi_div_up(l.m, pair_rows), job.columns = (int)tpi_div_up(l.n, L::columns);
    job.steps = (int)tpi_div_up(l.k, tile_inner);
    job.h_columns = 3 * job.rank + (l.bias ? 2 : 0);
    if (tpi_wants_low_rank(launch->step) && l.rank == tpi_in_operand(launch->step, l.a)->shape[1]) {
        job.h = tpi_out(launch, 1);
        job.h_wide = tpi_out_operand(launch->step, 1)->dtype == TP_F32;
    }
    job.scale = l.scale;
    job.makers = (clusters < most_makers ? clusters : most_makers) / job.pairs;
    if (job.makers > job.columns) job.makers = job.columns;
    if (job.makers > job.steps) job.makers = job.steps;
    if (job.makers < 1) job.makers = 1;
    return job;
}

template <class L>
split_job split_of(const tpi_launch *launch, const tpi_layer &l, const pieces &at, const lora_job &job) {
    char *scratch = (char *)tpi_scratch(launch);
    split_job s = {};
    s.a = tpi_in(launch, l.a), s.b = tpi_in(launch, l.b);
    if (l.bias)
        s.bias = tpi_in(launch, l.bias), s.wide_bias = tpi_in_operand(launch->step, l.bias)->dtype == TP_F32;
    s.to_a = (bf16 *)(scratch + at.a), s.to_b = (bf16 *)(scratch + at.b);
    s.ready = job.ready;
    s.a_k = l.ma.transposed ? 1 : l.ma.leading, s.a_r = l.ma.transposed ? l.ma.leading : 1;
    s.b_r = l.mb.transposed ? 1 : l.mb.leading, s.b_n = l.mb.transposed ? l.mb.leading : 1;
    s.to_r = L::outer_w ? job.n : 1, s.to_n = L::outer_w ? 1 : 3 * job.rank + 8;
    s.k = (int)l.k, s.n = job.n, s.rank = job.rank, s.own_rank = job.own_rank;
    s.ranks = L::ranks;
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

/* Pairs of blocks, which may start while the kernel before is ending. */
struct pair_launch {
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config;

    pair_launch(const tpi_launch *launch, int pairs, int shared_bytes) : attributes(), config() {
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim = {2, 1, 1};
        attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[1].val.programmaticStreamSerializationAllowed = 1;
        config.gridDim = dim3(2 * (unsigned)pairs);
        config.blockDim = dim3(threads);
        config.dynamicSmemBytes = shared_bytes;
        config.stream = tpi_cuda_of(launch)->stream;
        config.attrs = attributes;
        config.numAttrs = 2;
    }
};

template <class L> tp_status run(const tpi_launch *launch, const tpi_layer &l) {
    const pieces at = pieces_of(l, L::ranks);
    int clusters = 0; /* that can be there at once: tiles wait for each other */
    const pair_launch all(launch, tpi_cuda_of(launch)->processors / 2, L::shared_bytes);
    cudaError_t error =
        cudaFuncSetAttribute(lora_kernel<L>, cudaFuncAttributeMaxDynamicSharedMemorySize, L::shared_bytes);
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, lora_kernel<L>, &all.config);
    if (error != cudaSuccess) return tpi_cuda_check(error, launch);
    const lora_job job = job_of<L>(launch, l, at, clusters);
    const split_job split = split_of<L>(launch, l, at, job);
    const int tiles = job.pairs * job.columns;
    tile_maps maps;
    if (!make_maps<L>(&maps, launch, l, job, split))
        return tpi_fail(TP_EDEVICE, "cuda:%d: linear_lora: the driver makes no tensor maps",
                        tpi_cuda_of(launch)->index);
    TPI_TRY(start_split(launch, split, l.ma.dtype));
    const pair_launch some(launch, tiles < clusters ? tiles : clusters, L::shared_bytes);
    return tpi_cuda_check(cudaLaunchKernelEx(&some.config, lora_kernel<L>, maps, job), launch);
}

/* What tiles of so many columns take together: their turns, each of which costs its columns and, to begin and
 * to end it, as much as 32 more. */
int64_t cost(const tpi_launch *launch, const tpi_layer &l, int columns) {
    const int64_t tiles = tpi_div_up(l.m, pair_rows) * tpi_div_up(l.n, columns);
    return tpi_div_up(tiles, tpi_cuda_of(launch)->processors / 2) * (columns + 32);
}

/* Ranks that a layout makes room for. */
int ranks_of(const tpi_layer &l) {
    return l.rank <= 16 ? 16 : l.rank <= 32 ? 32 : 64;
}

template <bool OUTER_W> tp_status run_any(const tpi_launch *launch, const tpi_layer &l) {
    if (l.rank > 32) return run<layout<128, 64, OUTER_W>>(launch, l);
    if (l.rank > 16) return run<layout<256, 32, OUTER_W>>(launch, l);
    const int64_t wide = cost(launch, l, 256), middle = cost(launch, l, 224), narrow = cost(launch, l, 128);
    if (wide <= middle && wide <= narrow) return run<layout<256, 16, OUTER_W>>(launch, l);
    if (middle <= narrow) return run<layout<224, 16, OUTER_W>>(launch, l);
    return run<layout<128, 16, OUTER_W>>(launch, l);
}

} // namespace

size_t tpi_cuda_lora_hopper_scratch(const tpi_layer *l) {
    tpi_layer first = *l;
    if (first.rank > TPI_RANKS_AT_ONCE) first.rank = TPI_RANKS_AT_ONCE;
    return pieces_of(first, ranks_of(first)).end;
}

/* Copies start at multiples of 16 bytes, and so do their rows. */
bool tpi_cuda_lora_hopper_fits(const tpi_launch *launch, const tpi_layer *l) {
    uintptr_t places =
        (uintptr_t)tpi_in(launch, 0) | (uintptr_t)tpi_in(launch, l->w) | (uintptr_t)tpi_out(launch, 0);
    if (l->rank > TPI_RANKS_AT_ONCE) /* what adds the rest wants that, too */
        places |= (uintptr_t)tpi_in(launch, l->a) | (uintptr_t)tpi_in(launch, l->b);
    const bool ints = l->m < INT_MAX - pair_rows && l->n < INT_MAX / 256 && l->k < INT_MAX / 256;
    return tpi_cuda_of(launch)->capability == 90 && ints && l->n >= 64 && l->k > 0 && l->rank > 0 &&
           places % 16 == 0 && l->mw.leading % 8 == 0;
}

tp_status tpi_cuda_lora_hopper(const tpi_launch *launch, const tpi_layer *layer) {
    tpi_layer l = *layer;
    if (l.rank > TPI_RANKS_AT_ONCE) l.rank = TPI_RANKS_AT_ONCE;
    return l.mw.transposed ? run_any<false>(launch, l) : run_any<true>(launch, l);
}
