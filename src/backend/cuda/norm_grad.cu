/* Gradients of rms_norm and layer_norm.
 *
 * With x̂ = (x - mean)·r the normed row and g = dy·weight: dx = r·(g - mean(g) - x̂·mean(g·x̂)), without the
 * means of rms_norm. Rows stay in registers: each is read once, at the beginning. With frozen weights that is
 * all; the norm that a plan makes again just before, and what is added to dx just behind, go the same way.
 * Else mean and r of each row are kept, and dweight = Σ rows dy·x̂ and dbias = Σ rows dy are added up in two
 * stages: shares of the rows, then the shares in order. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/features.cuh"
#include "backend/cuda/groups.h"
#include "backend/cuda/row.cuh"

namespace {

constexpr int WARPS = 8;         /* of a block that adds up rows; a pack has no more elements */
constexpr int64_t SHARES = 128;  /* most shares of the rows, */
constexpr int64_t IN_SHARE = 32; /* and least rows of one */

/* ---- the gradient by x ---- */

struct grad_args {
    const void *x, *dy;
    void *dx;
    const void *added; /* to dx; NULL: nothing */
    void *y;           /* x̂·weight; NULL: not wanted */
    float2 *moments;   /* mean and r of each row; NULL: nobody asks */
    features weight;
    int64_t rows, n;
    float eps;
    bool centred; /* layer_norm */
};

/* Of a row: x's mean and r, mean(g·x̂)·r and mean(g). */
struct grad_means {
    float mean, r, along, across;
};

template <int PACKS, typename T, int VEC>
__device__ __forceinline__ grad_means means_of(const grad_args &args, const row_packs<T, VEC, PACKS> &x,
                                               const row_packs<T, VEC, PACKS> &dy, int packs, float *cells) {
    float mean = 0.0f, squares = 0.0f, g_sum = 0.0f, gx_sum = 0.0f;
    if (args.centred) mean = row_mean<PACKS>(packs, args.n, cells, [&](int p, int i) { return x.get(p, i); });
    each_pack<PACKS>(packs, [&](int p, int i) {
        const pack<T, VEC> v = x.get(p, i), dv = dy.get(p, i);
        float weight[VEC];
        read(args.weight, i * VEC, 1.0f, weight);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            const float centred = to_f32(v.at[j]) - mean, g = to_f32(dv.at[j]) * weight[j];
            squares += centred * centred;
            gx_sum += g * centred;
            g_sum += g;
        }
    });
    const float n = (float)args.n, r = rsqrtf(row_reduce<add_of>(squares, cells) / n + args.eps);
    const float along = row_reduce<add_of>(gx_sum, cells) / n * r * r;
    return {mean, r, along, args.centred ? row_reduce<add_of>(g_sum, cells) / n : 0.0f};
}

template <typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(ROW_THREADS) grad_rows(const grad_args args) {
    using values = pack<T, VEC>;
    __shared__ float cells[32];
    const int64_t row = row_of_thread(), first = row * args.n;
    const int packs = row < args.rows ? (int)(args.n / VEC) : 0;
    const T *from = static_cast<const T *>(args.x) + first, *slope = static_cast<const T *>(args.dy) + first;
    take_turn_at<PACKS>(packs, from, slope);
    row_packs<T, VEC, PACKS> x(from, packs), dy(slope, packs);
    const row_packs<T, VEC, PACKS> added(static_cast<const T *>(args.added) + first, args.added ? packs : 0);
    const grad_means of = means_of<PACKS>(args, x, dy, packs, cells);
    x.forget_floats(), dy.forget_floats();
    values *dx = reinterpret_cast<values *>(static_cast<T *>(args.dx) + first);
    values *y = reinterpret_cast<values *>(static_cast<T *>(args.y) + first);
    each_pack<PACKS>(packs, [&](int p, int i) {
        const values v = x.get(p, i), dv = dy.get(p, i);
        float weight[VEC];
        values out, again, more = {};
        read(args.weight, i * VEC, 1.0f, weight);
        if (args.added) more = added.get(p, i);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            const float g = to_f32(dv.at[j]) * weight[j], centred = to_f32(v.at[j]) - of.mean;
            out.at[j] = from_f32<T>((g - of.across - centred * of.along) * of.r + to_f32(more.at[j]));
            again.at[j] = from_f32<T>(centred * of.r * weight[j]);
        }
        dx[i] = out;
        if (args.y) y[i] = again;
    });
    if (args.moments && threadIdx.x == 0 && row < args.rows) args.moments[row] = make_float2(of.mean, of.r);
}

/* ---- the gradients by weight and bias ---- */

struct share_layout {
    int64_t rows, n, shares, in_share; /* in_share: rows of one */
};

/* shares [shares, 2, n]: Σ dy·x̂ and Σ dy over a share's rows. A lane has VEC columns, the warps take turns at
 * rows. */
template <typename T, int VEC>
__global__ void __launch_bounds__(32 * WARPS)
    add_rows(const T *__restrict__ x, const T *__restrict__ dy, const float2 *__restrict__ moments,
             float *__restrict__ shares, const share_layout layout) {
    __shared__ float cells[WARPS][VEC][32];
    const int64_t n = layout.n, column = ((int64_t)blockIdx.x * 32 + threadIdx.x) * VEC;
    const int64_t begin = blockIdx.y * layout.in_share;
    const int64_t end = column >= n ? begin : min(begin + layout.in_share, layout.rows);
    float sums[2][VEC] = {};
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += WARPS) {
        const pack<T, VEC> v = *reinterpret_cast<const pack<T, VEC> *>(x + row * n + column);
        const pack<T, VEC> dv = *reinterpret_cast<const pack<T, VEC> *>(dy + row * n + column);
        const float2 moment = moments[row];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            sums[0][j] += to_f32(dv.at[j]) * ((to_f32(v.at[j]) - moment.x) * moment.y);
            sums[1][j] += to_f32(dv.at[j]);
        }
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < VEC; j++) cells[threadIdx.y][j][threadIdx.x] = sums[k][j];
        __syncthreads();
        if (threadIdx.y >= VEC || column >= n) continue;
        float sum = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) sum += cells[warp][threadIdx.y][threadIdx.x];
        shares[(blockIdx.y * 2 + k) * n + column + threadIdx.y] = sum;
    }
}

template <typename W>
__global__ void __launch_bounds__(128)
    add_shares(const float *__restrict__ shares, W *__restrict__ out, const share_layout layout) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= layout.n) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t share = 0; share < layout.shares; share++) sum += shares[share * 2 * layout.n + i];
    out[i] = from_f32<W>(sum);
}

/* ---- steps ---- */

share_layout lay_shares(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    share_layout layout = {0, x->shape[x->rank - 1], 0, 0};
    layout.rows = layout.n ? x->count / layout.n : 0;
    layout.in_share = tpi_div_up(layout.rows, SHARES);
    if (layout.in_share < IN_SHARE) layout.in_share = IN_SHARE;
    layout.shares = tpi_div_up(layout.rows, layout.in_share);
    return layout;
}

bool wants_sums(const tpi_step *step) {
    for (int k = 1; k < step->n_out; k++)
        if (!(step->optional_missing >> k & 1)) return true;
    return false;
}

/* The moments of the rows, then the shares. */
size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    const share_layout layout = lay_shares(step);
    const int64_t floats = 2 * (layout.rows + 1) + layout.shares * 2 * layout.n;
    return wants_sums(step) ? (size_t)floats * sizeof(float) : 0;
}

float *shares_of(const tpi_launch *launch, const share_layout &layout) {
    return static_cast<float *>(tpi_scratch(launch)) + 2 * layout.rows;
}

template <typename T, int VEC> void launch_shares(const tpi_launch *launch, const grad_args &args) {
    const share_layout layout = lay_shares(launch->step);
    const dim3 grid((unsigned)tpi_div_up(args.n, 32 * VEC), (unsigned)layout.shares);
    add_rows<T, VEC><<<grid, dim3(32, WARPS), 0, tpi_cuda_of(launch)->stream>>>(
        static_cast<const T *>(args.x), static_cast<const T *>(args.dy), args.moments,
        shares_of(launch, layout), layout);
}

/* Output k is the sum of the k'th numbers of the shares; of no rows it is 0. */
void launch_sums(const tpi_launch *launch) {
    const share_layout layout = lay_shares(launch->step);
    for (int k = 1; k < launch->step->n_out; k++) {
        if (!tpi_out(launch, k)) continue;
        const float *shares = shares_of(launch, layout) + (k - 1) * layout.n;
        TPI_FLOAT_DTYPE(tpi_out_operand(launch->step, k)->dtype, W, {
            add_shares<W><<<(unsigned)tpi_div_up(layout.n, 128), 128, 0, tpi_cuda_of(launch)->stream>>>(
                shares, static_cast<W *>(tpi_out(launch, k)), layout);
        });
    }
}

/* What a step is launched with; of what a group has more, nothing. */
grad_args args_of(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const share_layout layout = lay_shares(step);
    grad_args args = {};
    args.x = tpi_in(launch, 0), args.dy = tpi_in(launch, 1), args.dx = tpi_out(launch, 0);
    args.weight = features_in(launch, 2);
    if (wants_sums(step)) args.moments = static_cast<float2 *>(tpi_scratch(launch));
    args.n = layout.n, args.rows = layout.rows;
    args.eps = (float)static_cast<const tpi_attr_norm *>(step->attr)->eps;
    args.centred = step->op == TPI_LAYER_NORM_GRAD;
    return args;
}

tp_status start(const tpi_launch *launch, const grad_args &args) {
    const tpi_step *step = launch->step;
    if (args.n == 0) return TP_OK;
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const uintptr_t bits = (uintptr_t)args.x | (uintptr_t)args.dy | (uintptr_t)args.dx |
                           (uintptr_t)args.weight.data | (uintptr_t)args.added | (uintptr_t)args.y;
    if (args.rows > 0)
        TPI_FLOAT_DTYPE(tpi_in_operand(step, 0)->dtype, T, {
            with_rows<T>(cuda, args.rows, args.n, bits, [&](const row_layout &rows, auto vec, auto held) {
                start_early(cuda, grad_rows<T, vec(), held()>, rows.blocks, rows.block, args);
                if (args.moments) launch_shares<T, vec()>(launch, args);
            });
        });
    if (wants_sums(step)) launch_sums(launch);
    return tpi_cuda_launched(launch);
}

tp_status norm_grad(const tpi_launch *launch) {
    return start(launch, args_of(launch));
}

bool accepts(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    for (int k = 0; k < step->n_in + step->n_out; k++)
        if (!step->operands[k].contiguous || !tpi_is_float(&step->operands[k])) return false;
    return x->rank >= 1 && tpi_in_operand(step, 1)->dtype == x->dtype &&
           tpi_out_operand(step, 0)->dtype == x->dtype;
}

/* ---- with the steps around it ---- */

const tpi_step *step_of(const tpi_bound *bound, uint32_t i, tpi_op op) {
    return i < bound->n_steps && bound->steps[i].op == op ? &bound->steps[i] : nullptr;
}

/* The norm of what `grad` is the gradient of. */
bool makes_norm_of(const tpi_bound *bound, const tpi_step *norm, const tpi_step *grad) {
    const tpi_attr_norm *a = static_cast<const tpi_attr_norm *>(norm->attr),
                        *b = static_cast<const tpi_attr_norm *>(grad->attr);
    if (a->eps != b->eps || norm->n_in != grad->n_in - 1) return false;
    if (tpi_bound_in(bound, norm, 0) != tpi_bound_in(bound, grad, 0)) return false;
    if (norm->n_in > 1 && tpi_bound_in(bound, norm, 1) != tpi_bound_in(bound, grad, 2)) return false;
    return tpi_alike(tpi_in_operand(norm, 0), tpi_in_operand(grad, 0)) &&
           tpi_alike(tpi_out_operand(norm, 0), tpi_in_operand(grad, 0));
}

/* What the sum `add` adds to dx, which nobody else reads. */
const void *added_to(const tpi_bound *bound, const tpi_step *add, const tpi_step *grad, uint32_t behind) {
    const tpi_range dx = tpi_range_of_output(bound, grad, 0), sum = tpi_range_of_output(bound, add, 0);
    const void *in[2] = {tpi_bound_in(bound, add, 0), tpi_bound_in(bound, add, 1)};
    const int other = (uintptr_t)in[0] == dx.begin ? 1 : 0;
    if ((uintptr_t)in[1 - other] != dx.begin || in[0] == in[1]) return nullptr;
    for (int k = 0; k < 2; k++)
        if (!tpi_alike(tpi_in_operand(add, k), tpi_in_operand(grad, 0))) return nullptr;
    if (!tpi_alike(tpi_out_operand(add, 0), tpi_in_operand(grad, 0))) return nullptr;
    return sum.begin == dx.begin || !tpi_read_later(bound, dx, behind) ? in[other] : nullptr;
}

/* Whether what the pass writes lies where it may: each element is read before it is written, by one thread.
 */
bool lies_well(const tpi_bound *bound, const tpi_step *grad, const grad_args &args) {
    const tpi_range x = tpi_range_of_input(bound, grad, 0);
    const int64_t bytes = (int64_t)(x.end - x.begin);
    const tpi_range dx = tpi_range_of(args.dx, bytes), y = tpi_range_of(args.y, args.y ? bytes : 0);
    const tpi_range read[] = {x, tpi_range_of_input(bound, grad, 1),
                              tpi_range_of(args.added, args.added ? bytes : 0)};
    for (const tpi_range &r : read)
        if (!tpi_same_or_apart(dx, r) || (args.y && !tpi_same_or_apart(y, r))) return false;
    if (grad->n_in > 2) {
        const tpi_range weight = tpi_range_of_input(bound, grad, 2);
        if (!tpi_apart(weight, dx) || (args.y && !tpi_apart(weight, y))) return false;
    }
    return !args.y || tpi_apart(dx, y);
}

} // namespace

/* A norm, its gradient by x, and a sum with that: the last two, the first two, or all. */
extern "C" uint32_t tpi_cuda_norm_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                                        tp_status *status) {
    const tpi_step *norm = step_of(bound, first, TPI_RMS_NORM);
    const uint32_t at = first + (norm ? 1 : 0);
    const tpi_step *grad = step_of(bound, at, TPI_RMS_NORM_GRAD), *add = step_of(bound, at + 1, TPI_ADD);
    if (!grad || grad->kernel->run != norm_grad || wants_sums(grad)) return 0;
    if (norm && !makes_norm_of(bound, norm, grad)) return 0;
    tpi_launch here = *launch;
    here.step = grad;
    grad_args args = args_of(&here);
    if (norm) args.y = tpi_bound_out(bound, norm, 0);
    const grad_args without = args;
    if (add && (args.added = added_to(bound, add, grad, at + 2))) args.dx = tpi_bound_out(bound, add, 0);
    if (args.added && !lies_well(bound, grad, args)) args = without;
    if ((!norm && !args.added) || !lies_well(bound, grad, args)) return 0;
    *status = start(&here, args);
    return (norm ? 2 : 1) + (args.added ? 1 : 0);
}

extern "C" const tpi_kernel_entry tpi_cuda_norm_grad[] = {
    {TPI_RMS_NORM_GRAD, {"cuda", norm_grad, accepts, scratch}},
    {TPI_LAYER_NORM_GRAD, {"cuda", norm_grad, accepts, scratch}},
    TPI_KERNELS_END,
};
