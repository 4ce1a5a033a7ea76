/* The pointwise operations, each said once: name, number of inputs, formula.
 *
 * Formulas compute in f32; those of whole numbers alone are templates that also take integers. */
#ifndef TAPER_BACKEND_CUDA_POINTWISE_OPS_CUH
#define TAPER_BACKEND_CUDA_POINTWISE_OPS_CUH

#include "backend/cuda/device.cuh"
#include "taper/ops.h"

/* clang-format off */
#define POINTWISE_FORMULAS(X)                                                                                \
    X(NEG,            1, -a)                                                                                 \
    X(EXP,            1, expf(a))                                                                            \
    X(LOG,            1, logf(a))                                                                            \
    X(SQRT,           1, sqrtf(a))                                                                           \
    X(RSQRT,          1, rsqrtf(a))                                                                          \
    X(TANH,           1, tanhf(a))                                                                           \
    X(SIGMOID,        1, sigmoids(a).x)                                                                      \
    X(RELU,           1, a < 0 ? 0 : a)                                                                      \
    X(SILU,           1, a * sigmoids(a).x)                                                                  \
    X(GELU,           1, a * normcdff(a))                                                                    \
    X(GELU_TANH,      1, a * sigmoids(2 * gelu_inner(a)).x)                                                  \
    X(MUL_SCALAR,     1, a * s)                                                                              \
    X(ADD_SCALAR,     1, a + s)                                                                              \
    X(ADD,            2, a + b)                                                                              \
    X(SUB,            2, a - b)                                                                              \
    X(MUL,            2, a * b)                                                                              \
    X(DIV,            2, a / b)                                                                              \
    X(MINIMUM,        2, a != a || a < b ? a : b)                                                            \
    X(MAXIMUM,        2, a != a || a > b ? a : b)                                                            \
    X(COMPARE,        2, compared(a, b, how))                                                                \
    X(WHERE,          3, a != 0 ? b : c)                                                                     \
    X(CAST,           1, a)                                                                                  \
    X(SILU_MUL,       2, a * sigmoids(a).x * b)                                                              \
    X(SILU_GRAD,      2, silu_slope(a) * b)                                                                  \
    X(GELU_GRAD,      2, gelu_slope(a) * b)                                                                  \
    X(GELU_TANH_GRAD, 2, gelu_tanh_slope(a) * b)
/* clang-format on */

/* sigmoid(x) and sigmoid(-x): neither is a difference, so both keep their relative precision far out. */
__device__ __forceinline__ float2 sigmoids(float x) {
    const float e = expf(-fabsf(x)), large = __fdividef(1.0f, 1.0f + e), small = e * large;
    return x < 0 ? make_float2(small, large) : make_float2(large, small);
}

__device__ __forceinline__ float silu_slope(float x) {
    const float2 s = sigmoids(x);
    return s.x * (1.0f + x * s.y);
}

__device__ __forceinline__ float gelu_slope(float x) {
    const float density = 0.398942280f * expf(-0.5f * x * x);
    return normcdff(x) + x * density;
}

/* u(x) = √(2/π)·(x + 0.044715·x³), and gelu's approximation ½x·(1 + tanh u) = x·sigmoid(2u). */
__device__ __forceinline__ float gelu_inner(float x) {
    return 0.797884561f * (x + 0.044715f * x * x * x);
}

__device__ __forceinline__ float gelu_tanh_slope(float x) {
    const float2 s = sigmoids(2.0f * gelu_inner(x));
    const float bend = s.x * s.y; /* 0 far out, where the slope of u may be infinite */
    const float inner_slope = 0.797884561f * (1.0f + 0.134145f * x * x);
    return bend == 0 ? s.x : s.x + 2.0f * x * bend * inner_slope;
}

template <typename C> __device__ __forceinline__ C compared(C a, C b, int how) {
    bool holds = how == TP_EQ   ? a == b
                 : how == TP_NE ? a != b
                 : how == TP_LT ? a < b
                 : how == TP_LE ? a <= b
                 : how == TP_GT ? a > b
                                : a >= b;
    return holds ? C(1) : C(0);
}

/* formula<TPI_ADD>::of(a, b, c, s, how); `arity` inputs are read. */
template <int OP> struct formula;
#define X(NAME, n, expression)                                                                               \
    template <> struct formula<TPI_##NAME> {                                                                 \
        static constexpr int arity = n;                                                                      \
        template <typename C>                                                                                \
        __device__ static __forceinline__ C of([[maybe_unused]] C a, [[maybe_unused]] C b,                   \
                                               [[maybe_unused]] C c, [[maybe_unused]] float s,               \
                                               [[maybe_unused]] int how) {                                   \
            return expression;                                                                               \
        }                                                                                                    \
    };
POINTWISE_FORMULAS(X)
#undef X

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
