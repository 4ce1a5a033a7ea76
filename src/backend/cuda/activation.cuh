/* The unary pointwise operations that a product may end with, chosen at run time; TPI_LEAF: none. */
#ifndef TAPER_BACKEND_CUDA_ACTIVATION_CUH
#define TAPER_BACKEND_CUDA_ACTIVATION_CUH

#include "backend/cuda/pointwise_ops.cuh"

__device__ __forceinline__ float activated(float x, int op) {
    /* clang-format off */
    switch (op) {
#define X(NAME) case TPI_##NAME: return formula<TPI_##NAME>::of(x, 0.0f, 0.0f, 0.0f, 0);
    X(NEG) X(EXP) X(LOG) X(SQRT) X(RSQRT) X(TANH) X(SIGMOID) X(RELU) X(SILU) X(GELU) X(GELU_TANH)
#undef X
    default: return x;
    }
    /* clang-format on */
}

#endif
