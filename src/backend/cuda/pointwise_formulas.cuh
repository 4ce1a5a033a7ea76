/* The formulas of pointwise_table.h as functions.
 *
 * Nothing is included, for both files are part of kernels that are compiled at run time, too
 * (chain_source.c): who includes this has the table, operations (TPI_ADD and so on) and comparisons (TP_EQ
 * and so on). */
#ifndef TAPER_BACKEND_CUDA_POINTWISE_FORMULAS_CUH
#define TAPER_BACKEND_CUDA_POINTWISE_FORMULAS_CUH

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

#endif
