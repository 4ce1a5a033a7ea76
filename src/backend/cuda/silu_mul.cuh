/* silu(gate) · up with both its gradients, as the kernels of training make them: in f32, with the fast
 * exponential and division. */
#ifndef TAPER_BACKEND_CUDA_SILU_MUL_CUH
#define TAPER_BACKEND_CUDA_SILU_MUL_CUH

struct silu_mul_numbers {
    float y, dgate, dup;
};

__device__ __forceinline__ silu_mul_numbers silu_mul_gradients(float gate, float up, float dy) {
    const float s = __fdividef(1.0f, 1.0f + __expf(-gate));
    return {gate * s * up, dy * up * s * (1.0f + gate * (1.0f - s)), dy * gate * s};
}

#endif
