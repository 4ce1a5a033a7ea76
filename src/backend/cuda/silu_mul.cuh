/* silu(gate) · up with both its gradients, as the kernels of training make them: where a product's tile ends
 * in them, each instruction counts. */
#ifndef TAPER_BACKEND_CUDA_SILU_MUL_CUH
#define TAPER_BACKEND_CUDA_SILU_MUL_CUH

#include "backend/cuda/device.cuh"

/* 1 / (1 + e^-x) to a few units in the last place. */
__device__ __forceinline__ float fast_sigmoid(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + fast_exp2(x * -LOG2_E)));
    return y;
}

struct silu_mul_numbers {
    float y, dgate, dup;
};

__device__ __forceinline__ silu_mul_numbers silu_mul_gradients(float gate, float up, float dy) {
    const float s = fast_sigmoid(gate), silu = gate * s;
    return {silu * up, dy * up * (s + silu * (1.0f - s)), dy * silu};
}

#endif
