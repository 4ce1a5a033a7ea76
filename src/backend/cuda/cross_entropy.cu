/* Cross entropy and its gradient, rows of logits over threads.
 *
 * Forward, a row is read once, with a sum that is scaled down when the maximum so far rises (Milakov and
 * Gimelshein 2018). The logarithm of the sum is kept, so that the gradient is one exponential an element,
 * written over the logits where the plan lets it. */
#include "backend/cuda/exponentials.cuh"
#include "backend/cuda/layout.cuh"

namespace {

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

template <typename T, int VEC>
__global__ void __launch_bounds__(ROW_THREADS) loss_rows(const loss_args args) {
    __shared__ float cells[32];
    const int64_t row = row_of_thread();
    const T *logits = static_cast<const T *>(args.logits) + row * args.n;
    const int packs = row < args.rows ? (int)(args.n / VEC) : 0;
    running_sum mine;
    for (int i = threadIdx.x; i < packs; i += HELD * blockDim.x) {
        float x[HELD][VEC];
        read_packs(reinterpret_cast<const pack<T, VEC> *>(logits), i, packs, x);
        mine.add(x);
    }
    const float top = row_reduce<max_of>(mine.top, cells);
    const float sum = row_reduce<add_of>(mine.against(top), cells);
    if (threadIdx.x != 0 || row >= args.rows) return;
    const float lse = isinf(top) ? top : top + logf(sum);
    const int64_t label = args.labels[row];
    const bool known = label >= 0 && label < args.n;
    if (label != args.ignore && !known) report_fault(args.fault, TPI_CROSS_ENTROPY, label, args.n);
    if (args.losses) args.losses[row] = label != args.ignore && known ? lse - to_f32(logits[label]) : 0.0f;
    if (args.lses) args.lses[row] = lse;
}

/* ---- the gradient: (softmax(logits) - onehot(label))·dloss ---- */

template <typename T, int VEC>
__global__ void __launch_bounds__(ROW_THREADS) grad_rows(const loss_args args) {
    const int64_t row = row_of_thread();
    if (row >= args.rows) return;
    const pack<T, VEC> *from =
        reinterpret_cast<const pack<T, VEC> *>(static_cast<const T *>(args.logits) + row * args.n);
    pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(static_cast<T *>(args.dlogits) + row * args.n);
    const int packs = (int)(args.n / VEC);
    const int64_t label = args.labels[row];
    const bool counts = label != args.ignore;
    const float lse = args.lse[row], dloss = args.dloss[row * args.dloss_stride];
    for (int first = threadIdx.x; first < packs; first += HELD * blockDim.x) {
        pack<T, VEC> in[HELD];
#pragma unroll
        for (int p = 0; p < HELD; p++) {
            const int i = first + p * (int)blockDim.x;
            if (i < packs) in[p] = from[i];
        }
#pragma unroll
        for (int p = 0; p < HELD; p++) {
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

/* A row is walked, not held: no copies of the kernels for rows of different lengths. */
tp_status launch_any(const tpi_launch *launch, const loss_args &args) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const uintptr_t bits = (uintptr_t)args.logits | (uintptr_t)args.dlogits;
    if (args.rows == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, {
        with_rows<T>(cuda, args.rows, args.n, bits, [&](const row_layout &rows, auto vec, auto) {
            if (launch->step->op == TPI_CROSS_ENTROPY)
                loss_rows<T, vec()><<<rows.blocks, rows.block, 0, cuda->stream>>>(args);
            else
                grad_rows<T, vec()><<<rows.blocks, rows.block, 0, cuda->stream>>>(args);
        });
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

bool accepts(const tpi_step *step) {
    const tpi_operand *logits = tpi_in_operand(step, 0);
    const bool grad = step->op == TPI_CROSS_ENTROPY_GRAD;
    for (int k = 0; k < step->n_in + step->n_out; k++) {
        const tpi_operand *operand = &step->operands[k];
        const bool uniform = grad && k == 3 && is_one_value(operand); /* of a mean */
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
