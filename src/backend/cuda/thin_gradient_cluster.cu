/* Gradients of adapters where blocks form clusters (Hopper and later): one launch for those of a layer.
 *
 * The blocks of a cluster share the rows of 64 columns; then each adds up some of the columns, reading the
 * others' shared memory, always in the same order. So shares are never in memory, and no second kernel sums
 * them. A's and B's gradient follow each other in a plan, and each alone leaves most of a device idle. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/groups.h"
#include "backend/cuda/lora.h"
#include "backend/cuda/thin_gradient.cuh"

#include <cooperative_groups.h>

namespace {

constexpr int most_shares = 8, most_together = 8;

struct gradients {
    gradient_args of[most_together];
    int end[most_together]; /* clusters of the products so far */
    int count, dtype;       /* of the thin matrices */
    bool rounded;           /* results are bf16, else f32 */
    int shares;             /* blocks of a cluster: 1, 2, 4 or 8 */
};

template <typename G, int TILES>
__global__ __launch_bounds__(threads, 2) void gradients_kernel(const __grid_constant__ gradients all) {
#if __CUDA_ARCH__ >= 900
    __shared__ float total[block_columns][8 * TILES + 1];
    take_turn();
    const auto cluster = cooperative_groups::this_cluster();
    const int share = (int)cluster.block_rank();
    int group = (int)blockIdx.x / all.shares, k = 0;
    while (group >= all.end[k]) k++;
    if (k > 0) group -= all.end[k - 1];
    const gradient_args &p = all.of[k];
    const int64_t column0 = (int64_t)group * block_columns, begin = share * p.share_rows;
    sum_rows<G, TILES>(total, p, column0, 0, begin,
                       begin + p.share_rows < p.rows ? begin + p.share_rows : p.rows);
    cluster.sync();
    const int own_columns = block_columns / all.shares;
    for (int i = threadIdx.x; i < own_columns * 8 * TILES; i += threads) {
        const int c = share * own_columns + i / (8 * TILES), r = i % (8 * TILES);
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
    cluster.sync(); /* no block ends while others read its sums */
#endif
}

template <typename G, int TILES> void start(const tpi_cuda *cuda, const gradients &all) {
    start_early(cuda, gradients_kernel<G, TILES>, (unsigned)(all.end[all.count - 1] * all.shares),
                block_shape(threads, 0, (unsigned)all.shares), all);
}

template <typename G> void start(const tpi_cuda *cuda, const gradients &all) {
    all.of[0].ranks <= 8 ? start<G, 1>(cuda, all) : start<G, 2>(cuda, all);
}

/* As many shares as leave all blocks resident: two on a processor. So a gradient's last bits depend on what
 * it is launched with, which is the same in every run of a plan. */
void share_out(gradients *all, int processors) {
    const int groups = all->end[all->count - 1];
    all->shares = most_shares;
    while (all->shares > 1 && groups * all->shares > 2 * processors) all->shares /= 2;
    for (int k = 0; k < all->count; k++)
        all->of[k].share_rows = thin_share_rows(all->of[k].rows, all->shares);
}

/* The launch's step as one more of the group, whose steps so far are those from `first` on. */
bool take(const tpi_launch *launch, const tpi_bound *bound, const tpi_step *first, gradients *all) {
    thin_roles roles;
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    if (launch->step->kernel->run != tpi_cuda_thin_gradient || !thin_roles_of(launch->step, &roles))
        return false;
    if (y->count == 0 || roles.g.columns > 16) return false;
    const bool rounded = y->dtype == TP_BF16;
    gradient_args args = thin_args_of(launch, roles);
    args.out = tpi_out(launch, 0);
    if ((uintptr_t)args.x % 16 != 0) return false;
    for (const tpi_step *other = first; other < launch->step; other++)
        if (!tpi_steps_apart(bound, other, launch->step)) return false;
    if (all->count > 0 && (all->dtype != (int)roles.g.dtype || all->rounded != rounded ||
                           (all->of[0].ranks <= 8) != (args.ranks <= 8)))
        return false;
    all->dtype = (int)roles.g.dtype, all->rounded = rounded;
    all->of[all->count] = args;
    all->end[all->count] =
        (all->count > 0 ? all->end[all->count - 1] : 0) + (int)tpi_div_up(args.columns, block_columns);
    all->count++;
    return true;
}

} // namespace

uint32_t tpi_cuda_thin_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                             tp_status *status) {
    gradients all = {};
    tpi_launch next = *launch;
    if (tpi_cuda_of(launch)->capability < 90) return 0;
    for (uint32_t i = first; i < bound->n_steps && all.count < most_together; i++) {
        next.step = &bound->steps[i];
        if (!take(&next, bound, launch->step, &all)) break;
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
