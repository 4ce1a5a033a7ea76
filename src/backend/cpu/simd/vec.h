/* One float vector, whatever the instruction set.
 *
 * Kernels are written once against vf (VW floats), vi (as many int32) and vm (a comparison's result), and
 * compiled once for each instruction set with -DTPI_ISA=<name>; TPI_SIMD(x) names what such a file shares
 * with others. The basic operators (+ - * /, and << >> & | on vi) are the compiler's own on vector types.
 * Invariants: a function ending in _n touches the first n ≤ VW elements only, and loads zeros behind them;
 * bf16 and f16 are uint16_t in memory, f32 in registers. Intrinsics stand in vec_<isa>.h alone. */
#ifndef TAPER_SIMD_VEC_H
#define TAPER_SIMD_VEC_H

#include "core/convert.h"

#include <math.h>

#define TPI_SIMD_NAME(isa, name)  tpi_##isa##_##name
#define TPI_SIMD_PASTE(isa, name) TPI_SIMD_NAME(isa, name)
#define TPI_SIMD(name)            TPI_SIMD_PASTE(TPI_ISA, name)

#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__AVX512F__)
#include "backend/cpu/simd/vec_avx512.h"
#elif defined(__AVX2__)
#include "backend/cpu/simd/vec_avx2.h"
#endif

static inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}
static inline int64_t ceil_div(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit;
}

static inline int64_t dtype_size(int dtype) {
    return dtype == TP_F32 || dtype == TP_I32 ? 4 : dtype == TP_U8 ? 1 : 2;
}

/* n ≤ VW elements from index i of an array of a floating dtype, and back. */
INLINE vf v_get(const void *data, int dtype, int64_t i, int64_t n) {
    if (dtype == TP_F32) {
        const float *p = (const float *)data + i;
        return n == VW ? v_load(p) : v_load_n(p, n);
    }
    const uint16_t *p = (const uint16_t *)data + i;
    if (dtype == TP_BF16) return n == VW ? v_load_bf16(p) : v_load_bf16_n(p, n);
    return n == VW ? v_load_f16(p) : v_load_f16_n(p, n);
}
INLINE void v_put(void *data, int dtype, int64_t i, vf x, int64_t n) {
    uint16_t *p = (uint16_t *)data + i;
    if (dtype == TP_F32) {
        if (n == VW)
            v_store((float *)data + i, x);
        else
            v_store_n((float *)data + i, x, n);
    } else if (dtype == TP_BF16) {
        if (n == VW)
            v_store_bf16(p, x);
        else
            v_store_bf16_n(p, x, n);
    } else if (n == VW) {
        v_store_f16(p, x);
    } else {
        v_store_f16_n(p, x, n);
    }
}

static inline vi v_mul_low(vi a, uint32_t m) {
    return (vi)((vu)a * (vu)v_seti((int32_t)m));
}

static inline vf v_abs(vf x) {
    return (vf)((vi)x & v_seti(0x7fffffff));
}
static inline vf v_neg(vf x) {
    return (vf)((vi)x ^ v_seti((int32_t)0x80000000u));
}
static inline vf v_copysign(vf magnitude, vf sign) {
    vi bit = v_seti((int32_t)0x80000000u);
    return (vf)(((vi)magnitude & ~bit) | ((vi)sign & bit));
}

/* e^x = 2^n · (1 + p), |r| ≤ ln 2 / 2, p = e^r - 1: the parts that exp and expm1 share. p = r + r²·q(r) with
 * q of the least largest error, 3e-9 of e^r. */
static inline vf v_exp_parts(vf x, vf *n) {
    *n = v_round(x * v_set(1.44269504f));
    vf r = v_fnma(*n, v_set(-2.12194440e-4f), v_fnma(*n, v_set(0.693359375f), x));
    vf q = v_set(0.00138145402f);
    q = v_fma(q, r, v_set(0.00836874511f));
    q = v_fma(q, r, v_set(0.0416683908f));
    q = v_fma(q, r, v_set(0.166665204f));
    q = v_fma(q, r, v_set(0.499999934f));
    return v_fma(q * r, r, r);
}

/* Within 2 ulp. exp(-inf) = 0, exp(NaN) = NaN. */
static inline vf v_exp(vf x) {
    vf n, bounded = v_max(v_set(-110.0f), v_min(v_set(90.0f), x)); /* NaN stays: it is the second operand */
    vf p = v_exp_parts(bounded, &n);
    return v_scale2(p + v_set(1.0f), n);
}

/* For terms of a sum, or of 1 + e^x, which cannot tell subnormal numbers from 0: there may be none, and the
 * result is infinite from 2^127·√2 on. A third fewer instructions where the processor has none for x·2^n. */
static inline vf v_exp_term(vf x) {
    if (VW == 16) return v_exp(x);
    vf n, bounded = v_max(v_set(-88.0f), v_min(v_set(89.0f), x));
    vf p = v_exp_parts(bounded, &n);
    return v_scale(p + v_set(1.0f), n);
}

/* tanh(x) = e / (e + 2), e = exp(2x) - 1, which keeps its relative precision near zero. */
static inline vf v_tanh(vf x) {
    vf n, a = v_min(v_set(10.0f), v_abs(x));
    vf p = v_exp_parts(a + a, &n);
    vf two_n = v_scale2(v_set(1.0f), n);
    vf e = v_fma(p, two_n, two_n - v_set(1.0f));
    return v_copysign(e / (e + v_set(2.0f)), x);
}

static inline vf v_sigmoid(vf x) {
    return v_set(1.0f) / (v_set(1.0f) + v_exp_term(v_neg(x)));
}

/* log(x) = e·ln 2 + log(m), m in [√½, √2); log(m) = 2 atanh(s), s = (m - 1) / (m + 1). */
static inline vf v_log(vf x) {
    vm small = v_lt(x, v_set(1.17549435e-38f)); /* subnormal, zero or negative */
    vf scaled = v_blend(small, x * v_set(8388608.0f), x);
    vi bits = (vi)((vu)scaled - (vu)v_seti(0x3f3504f3));
    vf e = v_to_float(bits >> 23) - v_blend(small, v_set(23.0f), v_set(0.0f));
    vf f = (vf)((bits & v_seti(0x7fffff)) + v_seti(0x3f3504f3)) - v_set(1.0f);
    vf s = f / (f + v_set(2.0f)), z = s * s;
    vf p = v_fma(z, v_set(1.0f / 11.0f), v_set(1.0f / 9.0f));
    p = v_fma(p, z, v_set(1.0f / 7.0f));
    p = v_fma(p, z, v_set(0.2f));
    p = v_fma(p, z, v_set(1.0f / 3.0f));
    /* 2 atanh(s) = 2s + 2s³p, and 2s = f - s·f: exact where f is small */
    vf tail = v_fma(s, (z + z) * p - f, e * v_set(-2.12194440e-4f));
    vf y = v_fma(e, v_set(0.693359375f), f + tail);
    y = v_blend(v_eq(x, v_set(0.0f)), v_set(-INFINITY), y);
    y = v_blend(v_lt(x, v_set(0.0f)), v_set(NAN), y);
    return v_blend(v_lt(x, v_set(INFINITY)), y, x + v_blend(v_lt(x, v_set(0.0f)), v_set(NAN), v_set(0.0f)));
}

/* Sine and cosine: x - q·π/2 in three parts, then the series on [-π/4, π/4]. Good to |x| of about 10⁵. */
static inline void v_sincos(vf x, vf *sine, vf *cosine) {
    vf q = v_round(x * v_set(0.636619772f));
    vf r = v_fnma(q, v_set(1.57079637f), x);
    r = v_fnma(q, v_set(-4.37113883e-8f), r);
    r = v_fnma(q, v_set(-1.71512489e-15f), r);
    vf z = r * r;
    vf s = v_fma(z, v_set(1.0f / 362880.0f), v_set(-1.0f / 5040.0f));
    s = v_fma(s, z, v_set(1.0f / 120.0f));
    s = v_fma(s, z, v_set(-1.0f / 6.0f));
    s = v_fma(s * z, r, r);
    vf c = v_fma(z, v_set(-1.0f / 3628800.0f), v_set(1.0f / 40320.0f));
    c = v_fma(c, z, v_set(-1.0f / 720.0f));
    c = v_fma(c, z, v_set(1.0f / 24.0f));
    c = v_fma(c, z, v_set(-0.5f));
    c = v_fma(c, z, v_set(1.0f));
    vi quadrant = v_to_int(q);
    vm swap = v_ne(v_to_float(quadrant & v_seti(1)), v_set(0.0f));
    vi s_sign = (vi)((vu)(quadrant & v_seti(2)) << 30);
    vi c_sign = (vi)((vu)((quadrant + v_seti(1)) & v_seti(2)) << 30);
    *sine = (vf)((vi)v_blend(swap, c, s) ^ s_sign);
    *cosine = (vf)((vi)v_blend(swap, s, c) ^ c_sign);
}

/* erf: x·P(x²) below 1; 1 - exp(-Q(x - 2.5)) from 1 to 4, where Q interpolates -log(erfc) at Chebyshev's
 * points; 1 beyond. Largest error 1e-7. */
static inline vf v_erf(vf x) {
    static const float near[] = {1.12837917f,    -0.376126385f,   0.112837825f,   -0.0268654307f,
                                 0.00522103181f, -0.00084840804f, 0.00011265959f, -9.66704437e-06f};
    static const float far[] = {7.80681527f,     5.35268067f,     0.943893704f,
                                0.0108585416f,   -0.00216530355f, 0.000420122524f,
                                -7.72913761e-5f, 1.33150144e-05f, -1.63715142e-06f};
    vf a = v_min(v_set(4.0f), v_abs(x)), z = a * a, t = a - v_set(2.5f);
    vf p = v_set(near[7]), q = v_set(far[8]);
    for (int i = 6; i >= 0; i--) p = v_fma(p, z, v_set(near[i]));
    for (int i = 7; i >= 0; i--) q = v_fma(q, t, v_set(far[i]));
    vf y = v_blend(v_lt(a, v_set(1.0f)), a * p, v_set(1.0f) - v_exp(v_neg(q)));
    return v_copysign(v_blend(v_eq(x, x), y, x), x);
}

static inline vf v_silu(vf x) {
    return x / (v_set(1.0f) + v_exp_term(v_neg(x)));
}
static inline vf v_gelu(vf x) {
    return v_set(0.5f) * x * (v_set(1.0f) + v_erf(x * v_set(0.707106781f)));
}
/* √(2/π)·(x + 0.044715·x³): the argument of gelu's tanh approximation. */
static inline vf v_gelu_argument(vf x) {
    return v_set(0.797884561f) * v_fma(x * x * x, v_set(0.044715f), x);
}
static inline vf v_gelu_tanh(vf x) {
    return v_set(0.5f) * x * (v_set(1.0f) + v_tanh(v_gelu_argument(x)));
}

#endif
