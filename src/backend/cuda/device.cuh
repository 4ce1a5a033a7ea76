/* What kernels are written with: numbers of any float dtype as f32, 16-byte packs, sums over warps and
 * blocks, faults.
 *
 * Arithmetic is in f32, storage in the operand's dtype; a conversion rounds to nearest even. */
#ifndef TAPER_BACKEND_CUDA_DEVICE_CUH
#define TAPER_BACKEND_CUDA_DEVICE_CUH

#include "backend/cuda/cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

/* ---- numbers ---- */

__device__ __forceinline__ float to_f32(float x) {
    return x;
}
__device__ __forceinline__ float to_f32(__nv_bfloat16 x) {
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_f32(__half x) {
    return __half2float(x);
}

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* Element i of floats of a dtype that is known when it runs. */
__device__ __forceinline__ float load_typed(const void *data, int dtype, int64_t i) {
    if (dtype == TP_F32) return ((const float *)data)[i];
    if (dtype == TP_BF16) return to_f32(((const __nv_bfloat16 *)data)[i]);
    return to_f32(((const __half *)data)[i]);
}

template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half from_f32<__half>(float x) {
    return __float2half_rn(x);
}

__device__ __forceinline__ void store_typed(void *data, int dtype, int64_t i, float x) {
    if (dtype == TP_F32)
        ((float *)data)[i] = x;
    else if (dtype == TP_BF16)
        ((__nv_bfloat16 *)data)[i] = from_f32<__nv_bfloat16>(x);
    else
        ((__half *)data)[i] = from_f32<__half>(x);
}

#define LOG2_E 1.4426950408889634f
#define LN_2   0.6931471805599453f

/* 2^x to two units in the last place; 2^-inf = 0. */
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* N elements that are loaded and stored at once; aligned to N · sizeof(T), at most 16 bytes. */
template <typename T, int N> struct alignas(sizeof(T) * N) pack { T at[N]; };
template <typename T> constexpr int pack_size = 16 / (int)sizeof(T);

/* Calls `body` with T bound to the C++ type of a float dtype: TPI_FLOAT_DTYPE(dtype, T, {
 * kernel<T><<<...>>>(...); }) */
#define TPI_FLOAT_DTYPE(dtype, T, ...)                                                                       \
    do {                                                                                                     \
        if ((dtype) == TP_F32) {                                                                             \
            using T = float;                                                                                 \
            __VA_ARGS__                                                                                      \
        } else if ((dtype) == TP_BF16) {                                                                     \
            using T = __nv_bfloat16;                                                                         \
            __VA_ARGS__                                                                                      \
        } else {                                                                                             \
            using T = __half;                                                                                \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    } while (0)

static inline bool tpi_is_float(const tpi_operand *operand) {
    return operand->dtype == TP_F32 || operand->dtype == TP_BF16 || operand->dtype == TP_F16;
}

static inline int64_t tpi_div_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* ---- sums and maxima ---- */

struct add_of {
    static constexpr float identity = 0.0f;
    __device__ static float join(float a, float b) { return a + b; }
};
struct max_of {
    static constexpr float identity = -INFINITY;
    __device__ static float join(float a, float b) { return fmaxf(a, b); }
};

template <typename Op> __device__ __forceinline__ float warp_reduce(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* The same value in every thread of the block; all threads call it. `cells` is shared memory of 32 floats. */
template <typename Op> __device__ __forceinline__ float block_reduce(float x, float *cells) {
    const int lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;
    x = warp_reduce<Op>(x);
    if (warps == 1) return x;
    __syncthreads(); /* the cells of an earlier reduction have been read */
    if (lane == 0) cells[threadIdx.x >> 5] = x;
    __syncthreads();
    return warp_reduce<Op>(lane < warps ? cells[lane] : Op::identity);
}

/* ---- faults ---- */

/* Records the first fault of a run. */
__device__ __forceinline__ void report_fault(tpi_cuda_fault *fault, int op, long long got, long long size) {
    if (atomicCAS(&fault->status, 0, (int)TP_EINVAL) == 0)
        fault->op = op, fault->got = got, fault->size = size;
}

/* Whether an earlier kernel of the run found a fault: state must not be written then. */
__device__ __forceinline__ bool has_fault(const tpi_cuda_fault *fault) {
    return *(const volatile int32_t *)&fault->status != 0;
}

#endif
