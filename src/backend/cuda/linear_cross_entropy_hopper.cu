/* Exponentials of a cross entropy straight out of the product, on Hopper, and the gradient by h that they give.
 *
 * The tiles of LINEAR_LORA's product, without ranks, end in exp(logit - reference), with the references that
 * earlier slices gave. bf16 has the range of f32, so a reference serves until a logit is far beyond it: then
 * the exponentials of that row would overflow, and the kernel behind the product makes the row again, by
 * ordinary products. That is rare; what matters is that it is right.
 *
 * The second product's tiles are of as many columns as leave the fewest processors idle in its last turn, and
 * end in sums in memory: each element is added to once a launch, so the order is fixed. */
#include "backend/cuda/hopper_launch.cuh"
#include "backend/cuda/linear_cross_entropy.cuh"

#include <limits.h>

namespace {

using L = layout<STRAIGHT_TILE, 16, false>;

/* ---- how a tile of logits ends ---- */

#if TPI_WGMMA

/* A thread's numbers of one row, two at a time: those of columns 8j + 2t and the next, t being its place among
 * four. */
template <int N, typename F> __device__ __forceinline__ void each_pair_of_row(int half, F body) {
#pragma unroll
    for (int j = 0; j < N / 4; j++) body(4 * j + 2 * half, 8 * j + (int)threadIdx.x % 4 * 2);
}
template <int N, typename F> __device__ __forceinline__ void each_of_row(int half, F body) {
    each_pair_of_row<N>(half, [&](int i, int c) { body(i, c), body(i + 1, c + 1); });
}

/* Nobody waits for the sums. */
__device__ __forceinline__ void add_pair(float *to, float first, float second) {
    asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(first), "f"(second) : "memory");
}

/* Over the row's columns under `end`, of all four threads that share it. */
template <typename Op, int N>
__device__ __forceinline__ float reduce_row(const float (&x)[N], int half, int end) {
    float y = Op::identity;
    if (end >= 2 * N)
        each_of_row<N>(half, [&](int i, int) { y = Op::join(y, x[i]); });
    else
        each_of_row<N>(half, [&](int i, int c) { y = c < end ? Op::join(y, x[i]) : y; });
    y = Op::join(y, __shfl_xor_sync(0xffffffffu, y, 1));
    return Op::join(y, __shfl_xor_sync(0xffffffffu, y, 2));
}

#endif

/* Rows that do not count and columns behind the slice's last get exponentials that nobody reads. */
struct take_tiles {
    static constexpr bool reads = false;
    slice_args args;
    float2 *parts;

    template <int N>
    __device__ __forceinline__ void operator()(const lora_job &p, float (&x)[N], int row0, int tile) const {
#if TPI_WGMMA
        static_assert(2 * N == STRAIGHT_TILE, "a tile has its part of the sums");
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int column0 = tile * 2 * N, row = row0 + row_in_tile(half), end = args.columns - column0;
            const int64_t label = row < p.m ? args.labels[row] : args.ignore;
            const bool live = counts(args, label);
            const int own = live ? (int)(label - args.column) - column0 : -1;
            const bool has_own = own >= 0 && own < 2 * N && own < end;
            const float shift = live ? shift_of(args.top[row]) * LOG2_E : INFINITY;
            if (__any_sync(0xffffffffu, has_own))
                each_of_row<N>(half, [&](int i, int c) {
                    if (has_own && c == own) args.own[row] = x[i];
                });
            const float top = reduce_row<max_of>(x, half, end);
            each_of_row<N>(half, [&](int i, int) { x[i] = fast_exp2(fmaf(x[i], LOG2_E, -shift)); });
            const float sum = reduce_row<add_of>(x, half, end);
            if (threadIdx.x % 4 == 0 && row < p.m) parts[(int64_t)tile * p.m + row] = {top, sum};
            if (!p.y[0]) continue;
            store_row(p, x, half, row0, column0);
            __syncwarp();
            if (threadIdx.x % 4 == 0 && has_own) /* its share of the gradient joins at the end */
                p.y[0][(int64_t)row * p.n + column0 + own] = from_f32<bf16>(0.0f);
        }
#endif
    }
};

/* ---- how a tile of exponentials · wᵀ ends ---- */

struct add_tiles {
    static constexpr bool reads = false;
    float *slope; /* [m, n] */

    template <int N>
    __device__ __forceinline__ void operator()(const lora_job &p, const float (&sum)[N], int row0,
                                               int tile) const {
#if TPI_WGMMA
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + row_in_tile(half);
            each_pair_of_row<N>(half, [&](int i, int c) {
                const int column = tile * 2 * N + c;
                if (row < p.m && column < p.n) add_pair(slope + (int64_t)row * p.n + column, sum[i], sum[i + 1]);
            });
        }
#endif
    }
};

/* Asked on Hopper, and here. */
static_assert(!take_tiles::reads && !add_tiles::reads, "these tiles come out of registers alone");

/* ---- what tiles have left, row by row ---- */

constexpr int settlers = 8; /* warps of a block, and its rows */

/* The exponentials of a row against a new reference; what was summed before is scaled down. All threads of
 * the block; `cells` is shared memory of 32 floats. */
__device__ void make_again(const slice_args &args, const straight_slice &slice, int64_t row, float reference,
                           float *cells) {
    using eight = pack<bf16, 8>;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, packs = args.features / 8;
    const eight *h = (const eight *)((const bf16 *)slice.h + row * args.features);
    const int own = args.labels[row] - args.column;
    float sum = 0.0f;
    for (int c = warp; c < args.columns; c += settlers) {
        const eight *w = (const eight *)((const bf16 *)slice.w + c * slice.w_leading);
        float logit = 0.0f;
        for (int i = lane; i < packs; i += 32)
#pragma unroll
            for (int j = 0; j < 8; j++) logit = fmaf(to_f32(h[i].at[j]), to_f32(w[i].at[j]), logit);
        const float e = expf(warp_reduce<add_of>(logit) - reference);
        if (lane > 0) continue;
        sum += e;
        if (slice.out) ((bf16 *)slice.out)[row * args.pitch + c] = from_f32<bf16>(c == own ? 0.0f : e);
    }
    sum = block_reduce<add_of>(sum, cells);
    const float scale = expf(args.top[row] - reference);
    for (int i = threadIdx.x; args.slope && i < args.features; i += blockDim.x)
        args.slope[row * args.features + i] *= scale;
    __syncthreads(); /* the old reference has been read */
    if (threadIdx.x == 0) args.total[row] = args.total[row] * scale + sum, args.top[row] = reference;
}

/* A warp adds its row's parts up; a row that has left its reference behind is made again by the block. */
__global__ void __launch_bounds__(settlers * 32)
    settle_rows(const slice_args args, const straight_slice slice, int tiles) {
    __shared__ float reference[settlers], cells[32];
    __shared__ bool left_behind[settlers];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t first = (int64_t)blockIdx.x * settlers, row = first + warp;
    take_turn();
    bool behind = false;
    if (row < slice.rows && counts(args, args.labels[row])) {
        float top = -INFINITY, sum = 0.0f;
        for (int i = lane; i < tiles; i += 32) {
            const float2 part = slice.parts[i * slice.rows + row];
            top = fmaxf(top, part.x), sum += part.y;
        }
        top = warp_reduce<max_of>(top), sum = warp_reduce<add_of>(sum);
        const float before = args.top[row], now = renewed<bf16>(before, top);
        behind = now != before;
        if (lane == 0) {
            reference[warp] = now;
            if (!behind) args.total[row] += sum;
        }
    }
    if (lane == 0) left_behind[warp] = behind;
    __syncthreads();
    for (int i = 0; i < settlers; i++)
        if (left_behind[i]) make_again(args, slice, first + i, reference[i], cells);
}

/* ---- host ---- */

template <class S>
tp_status add_by(const tpi_launch *launch, const straight_slice &slice, const slice_args &args) {
    const encode_fn f = encoder();
    const lora_job job = plain_job<S>(slice.rows, args.features, args.columns, false);
    tile_maps maps = {};
    if (!f || !encode(f, &maps.x[0], slice.out, slice.rows, args.columns, args.pitch, tile_rows) ||
        !encode_half<S>(f, &maps.w[0], slice.w, args.columns, args.features, slice.w_leading))
        return no_maps(launch, "linear_cross_entropy");
    return start_tiles<S>(launch, maps, job, add_tiles{args.slope});
}

} // namespace

bool straight_fits(const tpi_cuda *cuda, const straight_slice &slice, int64_t features) {
    return cuda->capability == 90 && features >= 8 && features % 8 == 0 && slice.w_leading % 8 == 0 &&
           features < INT_MAX / 256 && ((uintptr_t)slice.h | (uintptr_t)slice.w) % 16 == 0;
}

tp_status take_straight(const tpi_launch *launch, const straight_slice &slice, const slice_args &args) {
    const encode_fn f = encoder();
    const int64_t features = args.features;
    lora_job job = plain_job<L>(slice.rows, args.columns, features, false);
    job.y[0] = (bf16 *)slice.out;
    job.n = (int)args.pitch;
    tile_maps maps = {};
    if (!f || !encode(f, &maps.x[0], slice.h, slice.rows, features, features, tile_rows) ||
        !encode_half<L>(f, &maps.w[0], slice.w, features, args.columns, slice.w_leading))
        return no_maps(launch, "linear_cross_entropy");
    TPI_TRY(start_tiles<L>(launch, maps, job, take_tiles{args, slice.parts}));
    start_early(tpi_cuda_of(launch), settle_rows, (unsigned)tpi_div_up(slice.rows, settlers), settlers * 32,
                args, slice, job.columns);
    return tpi_cuda_launched(launch);
}

tp_status add_straight(const tpi_launch *launch, const straight_slice &slice, const slice_args &args) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const int64_t wide = cost_of_tiles(cuda, slice.rows, args.features, 256),
                  middle = cost_of_tiles(cuda, slice.rows, args.features, 224);
    return middle < wide ? add_by<layout<224, 16, true>>(launch, slice, args)
                         : add_by<layout<256, 16, true>>(launch, slice, args);
}
