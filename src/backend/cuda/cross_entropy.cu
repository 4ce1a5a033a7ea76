/* Cross entropy and its gradient, rows of logits over threads.
 *
 * Forward, a row is read once, with a sum that is scaled down when the maximum so far rises (Milakov and
 * Gimelshein 2018). The logarithm of the sum is kept, so that the gradient is one exponential an element,
 * written over the logits where the plan lets it. */
#include "backend/cuda/device.cuh"

namespace {

constexpr int LARGEST_BLOCK = 512;
constexpr int AT_ONCE = 4; /* packs that a thread asks for before it uses the first */

/* ---- rows over threads ---- */

/* block.x threads have a row, which are a part of a warp or whole warps; block.y rows are in a block. */
struct row_layout {
    dim3 block;
    unsigned blocks;
};

row_layout lay_rows(const tpi_cuda *device, int64_t rows, int64_t packs) {
    int64_t threads = tpi_div_up(packs, packs <= 32 ? 1 : AT_ONCE);
    if (threads > LARGEST_BLOCK) threads = LARGEST_BLOCK;
    unsigned lanes = (unsigned)tpi_div_up(threads, 32) * 32, in_block = 1;
    if (threads <= 32) {
        for (lanes = 1; lanes < threads;) lanes *= 2;
        int64_t warps = rows * lanes / (32 * 8 * device->processors);
        in_block = 32 / lanes * (unsigned)(warps < 1 ? 1 : warps > 4 ? 4 : warps);
    }
    return {dim3(lanes, in_block), (unsigned)tpi_div_up(rows, in_block)};
}

/* Over the threads of a row; all threads of the block call it. */
template <typename Op> __device__ __forceinline__ float row_reduce(float x, float *cells) {
    if (blockDim.x > 32) return block_reduce<Op>(x, cells);
    for (int lane = blockDim.x >> 1; lane > 0; lane >>= 1)
        x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

struct loss_args {
    const void *logits;
    const int32_t *labels;
    int64_t rows, n, ignore;
    float *losses, *lses; /* forward; either may be NULL */
    const float *lse, *dloss;
    int64_t dloss_stride;
    void *dlogits;
    tpi_cuda_fault *fault;
};

/* ---- losses ---- */

/* What exponents are taken against: 0 where there is nothing yet, or NaNs that the maximum passed over. */
__device__ __forceinline__ float shift_of(float top) {
    return top == -INFINITY ? 0.0f : top;
}

/* Reads packs first, first + blockDim.x, ... of a row and joins them to the sum of exponentials against
 * `top`. */
template <typename T, int VEC>
__device__ __forceinline__ void add_packs(const pack<T, VEC> *from, int first, int packs, float &top,
                                          float &sum) {
    pack<T, VEC> in[AT_ONCE];
    float high = top;
#pragma unroll
    for (int p = 0; p < AT_ONCE; p++) {
        const int i = first + p * (int)blockDim.x;
        if (i < packs) in[p] = from[i];
    }
#pragma unroll
    for (int p = 0; p < AT_ONCE; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++)
            if (first + p * (int)blockDim.x < packs) high = fmaxf(high, to_f32(in[p].at[j]));
    const float shift = shift_of(high);
    sum *= expf(top - shift);
    top = high;
#pragma unroll
    for (int p = 0; p < AT_ONCE; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++)
            if (first + p * (int)blockDim.x < packs) sum += expf(to_f32(in[p].at[j]) - shift);
}

template <typename T, int VEC>
__global__ void __launch_bounds__(LARGEST_BLOCK) loss_rows(const loss_args args) {
    __shared__ float cells[33];
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const T *logits = static_cast<const T *>(args.logits) + row * args.n;
    const int packs = row < args.rows ? (int)(args.n / VEC) : 0;
    float top = -INFINITY, sum = 0.0f;
    for (int i = threadIdx.x; i < packs; i += AT_ONCE * blockDim.x)
        add_packs(reinterpret_cast<const pack<T, VEC> *>(logits), i, packs, top, sum);
    const float all = row_reduce<max_of>(top, cells);
    sum = row_reduce<add_of>(sum * expf(top - shift_of(all)), cells);
    if (threadIdx.x != 0 || row >= args.rows) return;
    const float lse = isinf(all) ? all : all + logf(sum);
    const int64_t label = args.labels[row];
    const bool known = label >= 0 && label < args.n;
    if (label != args.ignore && !known) report_fault(args.fault, TPI_CROSS_ENTROPY, label, args.n);
    if (args.losses) args.losses[row] = label != args.ignore && known ? lse - to_f32(logits[label]) : 0.0f;
    if (args.lses) args.lses[row] = lse;
}

/* ---- the gradient: (softmax(logits) - onehot(label))·dloss ---- */

template <typename T, int VEC>
__global__ void __launch_bounds__(LARGEST_BLOCK) grad_rows(const loss_args args) {
    const int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= args.rows) return;
    const pack<T, VEC> *from =
        reinterpret_cast<const pack<T, VEC> *>(static_cast<const T *>(args.logits) + row * args.n);
    pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(static_cast<T *>(args.dlogits) + row * args.n);
    const int packs = (int)(args.n / VEC);
    const int64_t label = args.labels[row];
    const bool counts = label != args.ignore;
    const float lse = args.lse[row], dloss = args.dloss[row * args.dloss_stride];
    for (int first = threadIdx.x; first < packs; first += AT_ONCE * blockDim.x) {
        pack<T, VEC> in[AT_ONCE];
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            const int i = first + p * (int)blockDim.x;
            if (i < packs) in[p] = from[i];
        }
#pragma unroll
        for (int p = 0; p < AT_ONCE; p++) {
            const int i = first + p * (int)blockDim.x;
            pack<T, VEC> out;
#pragma unroll
            for (int j = 0; j < VEC; j++)
                out.at[j] = from_f32<T>(counts ? expf(to_f32(in[p].at[j]) - lse) * dloss : 0.0f);
            /* expm1 keeps the relative precision of a label that is almost sure. */
            if (counts && label / VEC == i)
#pragma unroll
                for (int j = 0; j < VEC; j++)
                    if (label % VEC == j) out.at[j] = from_f32<T>(expm1f(to_f32(in[p].at[j]) - lse) * dloss);
            if (i < packs) to[i] = out;
        }
    }
}

/* ---- steps ---- */

loss_args args_of(const tpi_launch *launch) {
    const tpi_operand *logits = tpi_in_operand(launch->step, 0);
    loss_args args = {};
    args.logits = tpi_in(launch, 0);
    args.labels = static_cast<const int32_t *>(tpi_in(launch, 1));
    args.rows = tpi_in_operand(launch->step, 1)->count;
    args.n = logits->shape[logits->rank - 1];
    args.ignore = static_cast<const tpi_attr_ignore *>(launch->step->attr)->ignore;
    args.fault = tpi_cuda_of(launch)->fault;
    return args;
}

template <typename T, int VEC> void launch_rows(const tpi_launch *launch, const loss_args &args) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const row_layout rows = lay_rows(cuda, args.rows, args.n / VEC);
    if (launch->step->op == TPI_CROSS_ENTROPY)
        loss_rows<T, VEC><<<rows.blocks, rows.block, 0, cuda->stream>>>(args);
    else
        grad_rows<T, VEC><<<rows.blocks, rows.block, 0, cuda->stream>>>(args);
}

tp_status launch_any(const tpi_launch *launch, const loss_args &args) {
    const uintptr_t bits = (uintptr_t)args.logits | (uintptr_t)args.dlogits;
    if (args.rows == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, {
        if (bits % 16 == 0 && args.n % pack_size<T> == 0)
            launch_rows<T, pack_size<T>>(launch, args);
        else
            launch_rows<T, 1>(launch, args);
    });
    return tpi_cuda_launched(launch);
}

tp_status cross_entropy(const tpi_launch *launch) {
    loss_args args = args_of(launch);
    args.losses = static_cast<float *>(tpi_out(launch, 0)),
    args.lses = static_cast<float *>(tpi_out(launch, 1));
    return launch_any(launch, args);
}

tp_status cross_entropy_grad(const tpi_launch *launch) {
    loss_args args = args_of(launch);
    args.lse = static_cast<const float *>(tpi_in(launch, 2)),
    args.dloss = static_cast<const float *>(tpi_in(launch, 3));
    args.dloss_stride = tpi_in_operand(launch->step, 3)->contiguous;
    args.dlogits = tpi_out(launch, 0);
    return launch_any(launch, args);
}

/* A mean's gradient is one number for all rows. */
bool one_value(const tpi_operand *x) {
    for (int d = 0; d < x->rank; d++)
        if (x->stride[d] != 0 && x->shape[d] != 1) return false;
    return true;
}

bool accepts(const tpi_step *step) {
    const tpi_operand *logits = tpi_in_operand(step, 0);
    const bool grad = step->op == TPI_CROSS_ENTROPY_GRAD;
    for (int k = 0; k < step->n_in + step->n_out; k++) {
        const tpi_operand *operand = &step->operands[k];
        const bool uniform = grad && k == 3 && one_value(operand);
        if (!operand->contiguous && !uniform) return false;
    }
    return tpi_is_float(logits) && (!grad || tpi_out_operand(step, 0)->dtype == logits->dtype);
}

} // namespace

extern "C" const tpi_kernel_entry tpi_cuda_cross_entropy[] = {
    {TPI_CROSS_ENTROPY, {"cuda", cross_entropy, accepts, NULL}},
    {TPI_CROSS_ENTROPY_GRAD, {"cuda", cross_entropy_grad, accepts, NULL}},
    TPI_KERNELS_END,
};
