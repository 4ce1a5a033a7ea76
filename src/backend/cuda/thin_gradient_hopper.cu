/* Gradients of adapters on Hopper: xᵀ·g with x [T, C] wide and bf16, and g [T, R] thin; those that follow
 * each other in a plan are one launch.
 *
 * It is the time of reading x. A block takes 128 columns and, with the others of its cluster, a share of the
 * rows, 64 at a time: one thread fetches x by the copy engine, two warps bring g, as two bf16 where it is
 * f32, and a warpgroup multiplies; they meet in a ring of stages. Both operands lie as they come, their rows
 * along the sum. Then each block of the cluster adds up some of the columns, reading the others' shared
 * memory, always in the same order: shares are never in memory, and no second kernel sums them. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/groups.h"
#include "backend/cuda/hopper.cuh"
#include "backend/cuda/lora.h"
#include "backend/cuda/tensor_map.cuh"
#include "backend/cuda/thin_gradient.cuh"

#include <cooperative_groups.h>
#include <limits.h>

namespace {

constexpr int most_shares = 8, most_together = 8, most_ranks = 64;
constexpr int most_ranks_f32 = 32; /* two numbers each */
constexpr int step_rows = 64;
constexpr int group = 128, first_of_g = group + 32, threads = first_of_g + step_rows;
constexpr int boxes = 2, block_columns = boxes * map_columns;
constexpr int box_bytes = step_rows * map_columns * 2, x_bytes = boxes * box_bytes;
constexpr int ring_bytes = 104 << 10; /* for two blocks on a processor */

struct gradient_job {
    gradient_args args;
    CUtensorMap x;
    int end; /* clusters of the products so far */
};

struct gradients {
    gradient_job of[most_together];
    int count, dtype; /* of the thin matrices */
    int ranks;        /* that there is room for: 8, 16, 32 or 64 */
    bool rounded;     /* results are bf16, else f32 */
    int shares;       /* blocks of a cluster: 1, 2, 4 or 8 */
};

/* Columns of g's tile: an f32 g has high and low ones. */
template <typename G, int RANKS> constexpr int tile_columns = sizeof(G) > 2 ? 2 * RANKS : RANKS;

/* Stages of x and g, and behind them the barriers. */
template <int N> struct ring_of {
    static constexpr int stage_bytes = x_bytes + step_rows * N * 2, stages = ring_bytes / stage_bytes;
    static constexpr int shared_bytes = stages * (stage_bytes + 16) + 1024; /* alignment */
};

#if TPI_WGMMA

template <int N> using ring = stage_ring<ring_of<N>::stages, ring_of<N>::stage_bytes>;

template <int N>
__device__ void fetch_x(const gradient_job &job, int column0, int64_t begin, int64_t end, ring<N> at) {
    for (int64_t row = begin; row < end; row += step_rows, at.next()) {
        barrier_wait(at.empty(), at.parity ^ 1);
        barrier_expect(at.full(), x_bytes);
#pragma unroll
        for (int i = 0; i < boxes; i++)
            copy_box(at.data() + i * box_bytes, &job.x, column0 + i * map_columns, (int)row, at.full());
    }
}

/* Ranks 8e ... 8e + 7 of a row of g; zeros where there is nothing. */
template <typename G>
__device__ __forceinline__ pack<G, 8> load_ranks(const gradient_args &p, int64_t row, int64_t end, int e) {
    pack<G, 8> ranks;
    const G *from = (const G *)p.g + row * p.g_leading + 8 * e;
    const int there = row < end ? p.ranks - 8 * e : 0;
    if (there >= 8 && (uintptr_t)from % 16 == 0) {
#pragma unroll
        for (size_t i = 0; i < sizeof(ranks) / 16; i++) ((uint4 *)&ranks)[i] = ((const uint4 *)from)[i];
    } else {
#pragma unroll
        for (int r = 0; r < 8; r++) ranks.at[r] = r < there ? from[r] : from_f32<G>(0.0f);
    }
    return ranks;
}

/* Eight ranks of a row: g's tile is blocks of [step_rows, 8]. Low ranks come `low` bytes behind high ones. */
template <typename G> __device__ __forceinline__ void put_ranks(uint32_t to, const pack<G, 8> &x, int low) {
    uint32_t first[4], second[4];
#pragma unroll
    for (int i = 0; i < 4; i++) split_pair(to_f32(x.at[2 * i]), to_f32(x.at[2 * i + 1]), first[i], second[i]);
    store_shared(to, first);
    if (sizeof(G) > 2) store_shared(to + low, second);
}

/* A thread has a row of each step. Memory is far: loads of several steps are under way at once. */
template <typename G, int RANKS, int N>
__device__ void bring_g(const gradient_args &p, int64_t begin, int64_t end, ring<N> at) {
    constexpr int eights = RANKS / 8, steps = 16 / (int)sizeof(G) / eights;
    const int mine = (int)threadIdx.x - first_of_g;
    for (int64_t row = begin + mine; row < end + mine; row += steps * step_rows) {
        pack<G, 8> ranks[steps][eights];
#pragma unroll
        for (int s = 0; s < steps; s++)
#pragma unroll
            for (int e = 0; e < eights; e++) ranks[s][e] = load_ranks<G>(p, row + s * step_rows, end, e);
#pragma unroll
        for (int s = 0; s < steps; s++) {
            if (row + s * step_rows >= end + mine) break;
            barrier_wait(at.empty(), at.parity ^ 1);
#pragma unroll
            for (int e = 0; e < eights; e++)
                put_ranks<G>(at.data() + x_bytes + (e * step_rows + mine) * 16, ranks[s][e],
                             eights * step_rows * 16);
            stores_to_products();
            barrier_arrive(at.full());
            at.next();
        }
    }
}

/* The warpgroup's sums over its rows, in `total` [block_columns][RANKS + 1], low ranks added to high ones. A
 * stage is released when the products of the next are on their way; what is summed lies over the ring. */
template <int RANKS, int N>
__device__ void multiply(float (*total)[RANKS + 1], int64_t begin, int64_t end, ring<N> at) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    float sum[boxes][N / 2] = {}; /* box i's columns by g's */
    uint32_t used = 0;
    for (int64_t row = begin; row < end; row += step_rows, at.next()) {
        barrier_wait(at.full(), at.parity);
        products_begin();
#pragma unroll
        for (int s = 0; s < step_rows / 16; s++)
#pragma unroll
            for (int i = 0; i < boxes; i++)
                wgmma<true, true>(sum[i], outer_descriptor(at.data() + i * box_bytes) + 128 * s,
                                  narrow_descriptor(at.data() + x_bytes) + 16 * s, true);
        products_begun();
        products_wait<1>();
        if (used && threadIdx.x == 0) barrier_arrive(used);
        used = at.empty();
    }
    products_wait<0>();
#pragma unroll
    for (int i = 0; i < boxes; i++) settle(sum[i]);
    warpgroup_sync(1);
#pragma unroll
    for (int i = 0; i < boxes; i++)
#pragma unroll
        for (int v = 0; v < RANKS / 2; v++) {
            const int c = i * map_columns + warp * 16 + lane / 4 + v % 4 / 2 * 8;
            const float low = N > RANKS ? sum[i][v + (N - RANKS) / 2] : 0.0f;
            total[c][v / 4 * 8 + lane % 4 * 2 + v % 2] = sum[i][v] + low;
        }
}

/* Adds up this block's part of the cluster's columns, and writes it. */
template <int RANKS>
__device__ void add_shares(const gradients &all, const gradient_args &p, float (*total)[RANKS + 1],
                           int column0, int share) {
    const auto cluster = cooperative_groups::this_cluster();
    const int own = block_columns / all.shares;
    for (int i = (int)threadIdx.x; i < own * RANKS; i += threads) {
        const int c = share * own + (p.out_rank == 1 ? i / RANKS : i % own);
        const int r = p.out_rank == 1 ? i % RANKS : i / own;
        float sum = 0.0f;
#pragma unroll 4
        for (int other = 0; other < all.shares; other++) sum += *cluster.map_shared_rank(&total[c][r], other);
        if (column0 + c >= p.columns || r >= p.ranks) continue;
        const int64_t at = (column0 + c) * p.out_column + r * p.out_rank;
        if (all.rounded)
            ((bf16 *)p.out)[at] = from_f32<bf16>(sum);
        else
            ((float *)p.out)[at] = sum;
    }
}

#endif

template <typename G, int RANKS>
__global__ __launch_bounds__(threads, 2) void gradients_kernel(const __grid_constant__ gradients all) {
#if TPI_WGMMA
    constexpr int N = tile_columns<G, RANKS>;
    extern __shared__ char shared[];
    ring<N> at;
    at.memory = (shared_address(shared) + 1023) / 1024 * 1024;
    at.barriers = at.memory + ring_of<N>::stages * ring_of<N>::stage_bytes;
    const int share = cluster_rank();
    int cluster = (int)blockIdx.x / all.shares, k = 0;
    while (cluster >= all.of[k].end) k++;
    if (k > 0) cluster -= all.of[k - 1].end;
    const gradient_job &job = all.of[k];
    const gradient_args &p = job.args;
    const int column0 = cluster * block_columns;
    const int64_t begin = share * p.share_rows, end = min(begin + p.share_rows, p.rows);
    if (threadIdx.x == 0) {
        for (int i = 0; i < ring_of<N>::stages; i++) {
            /* full: who fetches x, and bytes; who brings g */
            barrier_init(at.barriers + i * 16, 1 + step_rows);
            barrier_init(at.barriers + i * 16 + 8, 1); /* empty */
        }
        barriers_made();
        prefetch_map(&job.x);
    }
    __syncthreads();
    take_turn();
    auto total = (float(*)[RANKS + 1])(shared + (at.memory - shared_address(shared)));
    if (threadIdx.x < group)
        multiply<RANKS, N>(total, begin, end, at);
    else if (threadIdx.x == group)
        fetch_x<N>(job, column0, begin, end, at);
    else if (threadIdx.x >= first_of_g)
        bring_g<G, RANKS, N>(p, begin, end, at);
    cluster_sync();
    add_shares<RANKS>(all, p, total, column0, share);
    cluster_sync(); /* no block ends while others read its sums */
#endif
}

/* ---- host ---- */

template <typename G, int RANKS> void start(const tpi_cuda *cuda, const gradients &all) {
    constexpr int bytes = ring_of<tile_columns<G, RANKS>>::shared_bytes;
    allow_shared((const void *)gradients_kernel<G, RANKS>, bytes);
    start_early(cuda, gradients_kernel<G, RANKS>, (unsigned)(all.of[all.count - 1].end * all.shares),
                block_shape(threads, bytes, (unsigned)all.shares), all);
}

template <typename G> void start(const tpi_cuda *cuda, const gradients &all) {
    constexpr int most = sizeof(G) > 2 ? most_ranks_f32 : most_ranks;
    if (all.ranks == 8) return start<G, 8>(cuda, all);
    if (all.ranks == 16) return start<G, 16>(cuda, all);
    if (all.ranks == 32) return start<G, 32>(cuda, all);
    start<G, most>(cuda, all);
}

/* As many shares as leave all blocks resident, two on a processor: then each has copies under way until the
 * end. So a gradient's last bits depend on what it is launched with, which is the same in every run of a plan.
 */
void share_out(gradients *all, int processors) {
    const int clusters = all->of[all->count - 1].end;
    all->shares = 1;
    while (all->shares < most_shares && clusters * all->shares <= processors) all->shares *= 2;
    for (int k = 0; k < all->count; k++) {
        gradient_args *args = &all->of[k].args;
        args->share_rows = tpi_div_up(tpi_div_up(args->rows, all->shares), step_rows) * step_rows;
    }
}

int room_for(int64_t ranks) {
    int room = 8;
    while (room < ranks) room *= 2;
    return room;
}

/* Whether such a product may be launched with those so far. */
bool belongs(const gradients &all, const thin_roles &roles, const tpi_operand *y) {
    const bool wide = roles.g.dtype == TP_F32;
    if (y->count == 0 || roles.g.columns > (wide ? most_ranks_f32 : most_ranks)) return false;
    if (roles.x.rows > INT_MAX || roles.x.columns > INT_MAX) return false;
    return all.count == 0 || (all.dtype == (int)roles.g.dtype && all.rounded == (y->dtype == TP_BF16) &&
                              all.ranks == room_for(roles.g.columns));
}

/* The launch's step as one more of the group, whose steps so far are those from `first` on. */
bool take(const tpi_launch *launch, const tpi_bound *bound, const tpi_step *first, encode_fn encoder,
          gradients *all) {
    thin_roles roles;
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    if (launch->step->kernel->run != tpi_cuda_thin_gradient || !thin_roles_of(launch->step, &roles))
        return false;
    if (!belongs(*all, roles, y)) return false;
    for (const tpi_step *other = first; other < launch->step; other++)
        if (!tpi_steps_apart(bound, other, launch->step)) return false;
    gradient_job *job = &all->of[all->count];
    job->args = thin_args_of(launch, roles);
    job->args.out = tpi_out(launch, 0);
    if ((uintptr_t)job->args.x % 16 != 0 ||
        !encode(encoder, &job->x, job->args.x, roles.x.rows, roles.x.columns, roles.x.leading, step_rows))
        return false;
    job->end = (all->count > 0 ? job[-1].end : 0) + (int)tpi_div_up(job->args.columns, block_columns);
    all->dtype = (int)roles.g.dtype, all->rounded = y->dtype == TP_BF16;
    all->ranks = room_for(roles.g.columns);
    all->count++;
    return true;
}

} // namespace

uint32_t tpi_cuda_thin_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                             tp_status *status) {
    gradients all = {};
    tpi_launch next = *launch;
    if (tpi_cuda_of(launch)->capability != 90) return 0;
    const encode_fn function = encoder();
    for (uint32_t i = first; function && i < bound->n_steps && all.count < most_together; i++) {
        next.step = &bound->steps[i];
        if (!take(&next, bound, launch->step, function, &all)) break;
    }
    if (all.count == 0) return 0;
    share_out(&all, tpi_cuda_of(launch)->processors);
    if (all.dtype == TP_F32)
        start<float>(tpi_cuda_of(launch), all);
    else
        start<bf16>(tpi_cuda_of(launch), all);
    *status = tpi_cuda_launched(launch);
    return (uint32_t)all.count;
}
