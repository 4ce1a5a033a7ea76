/* Cross entropy with its output product: a block of threads has a row of a slice's logits. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_CROSS_ENTROPY_ROWS_CUH
#define TAPER_BACKEND_CUDA_LINEAR_CROSS_ENTROPY_ROWS_CUH

#include "backend/cuda/linear_cross_entropy.cuh"

namespace {

constexpr int VEC = 4, PACKS = 4, THREADS = 1024;
constexpr int64_t WIDEST = VEC * PACKS * THREADS; /* slice: a block's registers hold a row of it */

/* The thread's part of a row; -inf where the slice has ended. */
__device__ __forceinline__ void read_logits(const slice_args &args, float (&x)[PACKS][VEC]) {
    const float *row = args.logits + blockIdx.x * args.ld;
    pack<float, VEC> in[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = (threadIdx.x + p * blockDim.x) * VEC;
        if (i < args.columns) in[p] = *reinterpret_cast<const pack<float, VEC> *>(row + i);
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++)
            x[p][j] = (threadIdx.x + p * blockDim.x) * VEC + j < args.columns ? in[p].at[j] : -INFINITY;
}

template <typename E>
__device__ __forceinline__ void write_row(E *out, const slice_args &args, const float (&e)[PACKS][VEC]) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = (threadIdx.x + p * blockDim.x) * VEC;
        pack<E, VEC> values;
#pragma unroll
        for (int j = 0; j < VEC; j++) values.at[j] = from_f32<E>(e[p][j]);
        if (i < args.columns) *reinterpret_cast<pack<E, VEC> *>(out + blockIdx.x * args.pitch + i) = values;
    }
}

/* exp(logit - reference) of a row, and 0 for its label, whose share of the gradient joins at the end. Rows
 * that do not count are zeros. `out` is NULL or where the exponentials go, over the logits: the block has
 * read the row before it writes. */
template <typename E>
__global__ void __launch_bounds__(THREADS) take_exponentials(const slice_args args, E *out) {
    __shared__ float cells[32];
    const int64_t row = blockIdx.x, label = args.labels[row];
    float e[PACKS][VEC] = {}, sum = 0.0f, top = -INFINITY;
    if (!counts(args, label)) {
        if (out) write_row(out, args, e);
        return;
    }
    const float before = args.column ? args.top[row] : -INFINITY;
    read_logits(args, e);
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) top = fmaxf(top, e[p][j]);
    const float reference = renewed<E>(before, block_reduce<max_of>(top, cells));
    const float shift = shift_of(reference), scale = expf(before - shift);
    const int own = (int)(label - args.column);
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            const float x = e[p][j];
            sum += e[p][j] = expf(x - shift);
            if ((int)(threadIdx.x + p * blockDim.x) * VEC + j == own && own < args.columns)
                args.own[row] = x, e[p][j] = 0.0f;
        }
    if (out) write_row(out, args, e);
    sum = block_reduce<add_of>(sum, cells);
    if (threadIdx.x == 0) {
        args.total[row] = (args.column ? args.total[row] * scale : 0.0f) + sum;
        args.top[row] = reference;
    }
    if (!args.slope || args.column == 0 || reference == before) return;
    for (int i = threadIdx.x; i < args.features; i += blockDim.x)
        args.slope[row * args.features + i] *= scale;
}

/* What a row's loss is known by after the last slice; and its gradient by h: Σ p·wᵀ over the other columns,
 * and the label's column times p - 1. */
template <typename T>
__global__ void __launch_bounds__(256)
    finish_rows(const slice_args args, const T *__restrict__ w, int64_t feature_stride, int64_t label_stride,
                float *losses, float *lses, tpi_cuda_fault *fault) {
    const int64_t row = blockIdx.x, label = args.labels[row];
    const bool live = counts(args, label);
    float lse = 0.0f, loss = 0.0f, known = 0.0f, scale = 0.0f;
    if (live) {
        const float top = args.top[row], total = args.total[row], own = args.own[row];
        lse = isinf(top) ? top : top + logf(total);
        loss = lse - own, known = expm1f(own - lse), scale = 1.0f / total;
    }
    if (threadIdx.x == 0) {
        if (!live && label != args.ignore)
            report_fault(fault, TPI_LINEAR_CROSS_ENTROPY, label, args.vocabulary);
        if (losses) losses[row] = loss;
        if (lses) lses[row] = lse;
    }
    if (!args.slope) return;
    float *slope = args.slope + row * args.features;
    for (int i = threadIdx.x; i < args.features; i += blockDim.x)
        slope[i] =
            live ? slope[i] * scale + known * to_f32(w[i * feature_stride + label * label_stride]) : 0.0f;
}

/* (p - onehot(label))·dloss of a row, over its logits. */
template <typename E>
__global__ void __launch_bounds__(THREADS) take_gradients(const slice_args args, E *out) {
    const int64_t row = blockIdx.x, label = args.labels[row];
    float e[PACKS][VEC] = {};
    if (counts(args, label)) {
        const float lse = args.lse[row], dloss = args.dloss[row * args.dloss_stride];
        const int own = (int)(label - args.column);
        read_logits(args, e);
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                const float x = e[p][j] - lse;
                e[p][j] = expf(x) * dloss;
                if ((int)(threadIdx.x + p * blockDim.x) * VEC + j == own) e[p][j] = expm1f(x) * dloss;
            }
    }
    __syncthreads(); /* the row has been read */
    write_row(out, args, e);
}

} // namespace

#endif
