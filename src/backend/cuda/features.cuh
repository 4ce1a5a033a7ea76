/* Vectors over the features of a row, weights and biases, of any float dtype: it is known at run time, so
 * that one kernel serves them all. */
#ifndef TAPER_BACKEND_CUDA_FEATURES_CUH
#define TAPER_BACKEND_CUDA_FEATURES_CUH

#include "backend/cuda/device.cuh"

struct features {
    const void *data; /* NULL: there is none */
    int dtype;
};

static inline features features_in(const tpi_launch *launch, int k) {
    if (k >= launch->step->n_in) return {NULL, TP_F32};
    return {tpi_in(launch, k), tpi_in_operand(launch->step, k)->dtype};
}

/* Elements i ... i+VEC-1 in accesses of at most 16 bytes; `absent` where there is no vector. Both 16-bit
 * dtypes go one way and are told apart element by element: that is less code than two ways. */
template <int VEC>
__device__ __forceinline__ void read(const features &f, int i, float absent, float (&out)[VEC]) {
    if (!f.data) {
#pragma unroll
        for (int j = 0; j < VEC; j++) out[j] = absent;
    } else if (f.dtype == TP_F32) {
        constexpr int N = VEC < 4 ? VEC : 4;
#pragma unroll
        for (int k = 0; k < VEC; k += N) {
            const pack<float, N> in =
                *reinterpret_cast<const pack<float, N> *>(static_cast<const float *>(f.data) + i + k);
#pragma unroll
            for (int j = 0; j < N; j++) out[k + j] = in.at[j];
        }
    } else {
        const pack<uint16_t, VEC> in =
            *reinterpret_cast<const pack<uint16_t, VEC> *>(static_cast<const uint16_t *>(f.data) + i);
#pragma unroll
        for (int j = 0; j < VEC; j++)
            out[j] = f.dtype == TP_BF16 ? __uint_as_float((unsigned)in.at[j] << 16)
                                        : __half2float(__ushort_as_half(in.at[j]));
    }
}

#endif
