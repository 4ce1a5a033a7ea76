/* Sums of exponentials in one pass: the sum so far is scaled down when the maximum rises (Milakov and
 * Gimelshein 2018). */
#ifndef TAPER_BACKEND_CUDA_EXPONENTIALS_CUH
#define TAPER_BACKEND_CUDA_EXPONENTIALS_CUH

#include "backend/cuda/row.cuh"

/* PACKS of the packs from `first` on that belong to this thread, all asked for before the first is used; -inf
 * where the row has ended. */
template <int PACKS, typename T, int VEC>
__device__ __forceinline__ void read_packs(const pack<T, VEC> *from, int first, int packs,
                                           float (&x)[PACKS][VEC]) {
    pack<T, VEC> in[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = first + p * (int)blockDim.x;
        if (i < packs) in[p] = from[i];
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const bool there = first + p * (int)blockDim.x < packs;
#pragma unroll
        for (int j = 0; j < VEC; j++) x[p][j] = there ? to_f32(in[p].at[j]) : -INFINITY;
    }
}

template <int PACKS, int VEC> __device__ __forceinline__ float largest(const float (&x)[PACKS][VEC]) {
    float top = -INFINITY;
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) top = fmaxf(top, x[p][j]);
    return top;
}

/* What exponents are taken against: 0 where there is nothing yet, or NaNs that the maximum passed over. */
__device__ __forceinline__ float shift_of(float top) {
    return top == -INFINITY ? 0.0f : top;
}

/* A sum of exponentials against its largest exponent. */
struct running_sum {
    float top = -INFINITY, sum = 0.0f;

    template <int PACKS, int VEC> __device__ __forceinline__ void add(const float (&x)[PACKS][VEC]) {
        const float high = fmaxf(top, largest(x)), shift = shift_of(high);
        sum *= expf(top - shift);
        top = high;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < VEC; j++) sum += expf(x[p][j] - shift);
    }

    /* The sum against a larger one. */
    __device__ __forceinline__ float against(float high) const {
        return sum * expf(top - shift_of(high));
    }
};

#endif
