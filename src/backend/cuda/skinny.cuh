/* Products with few rows (generation): what their kernels share. The weights are read once, at the memory's
 * speed. */
#ifndef TAPER_BACKEND_CUDA_SKINNY_CUH
#define TAPER_BACKEND_CUDA_SKINNY_CUH

#include "backend/cuda/activation.cuh"

constexpr int skinny_rows = 16;

/* y [m, n] = activation(x·w + h·b + bias), where h [m, rank] is the sum of h_parts matrices. w lies [n, k] or
 * [k, n] with rows w_leading apart. */
struct skinny_args {
    const void *x, *w, *bias, *b;
    const float *h;
    void *y;
    int64_t n, k, x_leading, w_leading, b_r, b_n;
    int m, rank, h_parts, bias_type, b_type, activation;
};

/* Element (row, r) of h. */
__device__ __forceinline__ float h_of(const skinny_args &p, int row, int r) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < p.h_parts; s++) sum += p.h[((int64_t)s * p.m + row) * p.rank + r];
    return sum;
}

template <typename X>
__device__ __forceinline__ void finish_skinny(const skinny_args &p, int row, int64_t column, float sum) {
    if (p.bias) sum += load_typed(p.bias, p.bias_type, column);
    ((X *)p.y)[row * p.n + column] = from_f32<X>(activated(sum, p.activation));
}

/* x and w of one 16-bit dtype, w [n, k], on tensor cores. */
template <typename T> void start_skinny_tensor(cudaStream_t stream, int processors, const skinny_args &args);

#endif
