/* Pointwise operations as kernels use them: with dtypes, and chosen at run time. */
#ifndef TAPER_BACKEND_CUDA_POINTWISE_OPS_CUH
#define TAPER_BACKEND_CUDA_POINTWISE_OPS_CUH

#include "backend/cuda/device.cuh"
#include "backend/cuda/pointwise_table.h"
#include "taper/ops.h"

#include "backend/cuda/pointwise_formulas.cuh" /* behind what it wants */

/* r[j] ← formula(a[j], b[j], c[j]) for an operation known at run time: all threads take the same way. ARITY:
 * that of the operations that may come, or 0. */
template <int ARITY, int N>
__device__ __forceinline__ void evaluate(int op, const float (&a)[N], const float (&b)[N],
                                         const float (&c)[N], float s, int how, float (&r)[N]) {
    switch (op) {
#define X(NAME, n, expression)                                                                               \
    case TPI_##NAME:                                                                                         \
        if constexpr (ARITY == 0 || ARITY == n) {                                                            \
            _Pragma("unroll") for (int j = 0; j < N; j++) r[j] =                                             \
                formula<TPI_##NAME>::of<float>(a[j], b[j], c[j], s, how);                                    \
        }                                                                                                    \
        break;
        POINTWISE_FORMULAS(X)
#undef X
    }
}

/* ---- dtypes that are not floats; conversions truncate and saturate, NaN gives 0 ---- */

__device__ __forceinline__ float to_f32(int32_t x) {
    return (float)x;
}
__device__ __forceinline__ float to_f32(uint8_t x) {
    return (float)x;
}
template <> __device__ __forceinline__ int32_t from_f32<int32_t>(float x) {
    return __float2int_rz(x);
}
template <> __device__ __forceinline__ uint8_t from_f32<uint8_t>(float x) {
    return (uint8_t)__float2uint_rz(fminf(fmaxf(x, 0.0f), 255.0f));
}

#endif
