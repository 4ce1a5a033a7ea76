/* Vectors of 8 floats: AVX2 with FMA and F16C. Partial loads and stores take their mask from a table. */
#ifndef TAPER_SIMD_VEC_AVX2_H
#define TAPER_SIMD_VEC_AVX2_H

#include <immintrin.h>

#define VW 8
typedef __m256 vf;
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32))); /* arithmetic that wraps */
typedef __m256 vm;                                    /* all ones where true */

static inline __m256i v_first(int64_t n) {
    static const int32_t table[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(table + 8 - n));
}

static inline vf v_set(float s) {
    return _mm256_set1_ps(s);
}
static inline vi v_seti(int32_t s) {
    return (vi)_mm256_set1_epi32(s);
}
static inline vf v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void v_store(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
static inline void v_stream(float *p, vf x) {
    _mm256_stream_ps(p, x);
}
static inline vf v_pin(vf x) { /* keeps x in a register: it is used more than once */
    __asm__("" : "+x"(x));
    return x;
}
static inline void v_hold(vf x) { /* x keeps its register up to here: no sum is moved into it */
    __asm__ volatile("" ::"x"(x));
}
static inline vf v_load_n(const float *p, int64_t n) {
    return _mm256_maskload_ps(p, v_first(n));
}
static inline void v_store_n(float *p, vf x, int64_t n) {
    _mm256_maskstore_ps(p, v_first(n), x);
}

static inline __m128i v_load_16_n(const uint16_t *p, int64_t n) {
    uint16_t part[8] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return _mm_loadu_si128((const __m128i *)part);
}
static inline void v_store_16_n(uint16_t *p, __m128i x, int64_t n) {
    uint16_t part[8];
    _mm_storeu_si128((__m128i *)part, x);
    memcpy(p, part, (size_t)n * sizeof *p);
}
static inline vf v_bf16_value(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline vf v_load_bf16(const uint16_t *p) {
    return v_bf16_value(_mm_loadu_si128((const __m128i *)p));
}
static inline vf v_load_bf16_n(const uint16_t *p, int64_t n) {
    return v_bf16_value(v_load_16_n(p, n));
}
static inline __m128i v_bf16_bits(vf x) { /* to nearest even; NaN stays NaN */
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
    __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
static inline void v_store_bf16(uint16_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, v_bf16_bits(x));
}
static inline void v_store_bf16_n(uint16_t *p, vf x, int64_t n) {
    v_store_16_n(p, v_bf16_bits(x), n);
}
static inline vf v_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vf v_load_f16_n(const uint16_t *p, int64_t n) {
    return _mm256_cvtph_ps(v_load_16_n(p, n));
}
static inline void v_store_f16(uint16_t *p, vf x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline void v_store_f16_n(uint16_t *p, vf x, int64_t n) {
    v_store_16_n(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), n);
}

static inline vf v_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf v_fnma(vf a, vf b, vf c) {
    return _mm256_fnmadd_ps(a, b, c);
} /* c - a·b */
static inline vf v_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
} /* b where either is NaN */
static inline vf v_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vf v_sqrt(vf a) {
    return _mm256_sqrt_ps(a);
}
static inline vf v_round(vf a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vi v_to_int(vf a) {
    return (vi)_mm256_cvttps_epi32(a);
}
static inline vf v_to_float(vi a) {
    return _mm256_cvtepi32_ps((__m256i)a);
}

/* The upper halves of the 64-bit products of unsigned elements. */
static inline vi v_mul_high(vi a, uint32_t m) {
    __m256i factor = _mm256_set1_epi32((int)m), x = (__m256i)a;
    __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, factor), 32);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
    return (vi)_mm256_blend_epi32(even, odd, 0xaa);
}

static inline vm v_eq(vf a, vf b) {
    return _mm256_cmp_ps(a, b, _CMP_EQ_OQ);
}
static inline vm v_ne(vf a, vf b) {
    return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ);
}
static inline vm v_lt(vf a, vf b) {
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}
static inline vm v_le(vf a, vf b) {
    return _mm256_cmp_ps(a, b, _CMP_LE_OQ);
}
static inline vf v_blend(vm m, vf yes, vf no) {
    return _mm256_blendv_ps(no, yes, m);
}
static inline vf v_keep(vf x, int64_t n) { /* zeros behind n */
    return _mm256_and_ps(x, _mm256_castsi256_ps(v_first(n)));
}

static inline float v_sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float v_top(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* x · 2^n, n a whole number from -127, which gives 0, to 128, which gives infinity. */
static inline vf v_scale(vf x, vf n) {
    return x * (vf)((v_to_int(n) + 127) << 23);
}
/* The same in two halves, so that neither power leaves the range for |n| ≤ 252. */
static inline vf v_scale2(vf x, vf n) {
    vi whole = v_to_int(v_max(v_min(n, v_set(252.0f)), v_set(-252.0f)));
    vi half = whole >> 1, rest = whole - half;
    return x * (vf)((half + 127) << 23) * (vf)((rest + 127) << 23);
}

static inline void v_transpose(vf r[VW]) {
    vf t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        vf low = r[i], high = r[i + 4];
        r[i] = _mm256_permute2f128_ps(low, high, 0x20);
        r[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
}

/* VW rows, `stride` bytes apart, transposed. */
static inline void v_load_transposed(const char *rows, int64_t stride, vf r[VW]) {
    for (int i = 0; i < VW; i++) r[i] = v_load((const float *)(const void *)(rows + i * stride));
    v_transpose(r);
}

/* VW lines of 8 floats, `stride` apart, turned: element i of out[j] is p[i·stride + j]. */
static inline void v_columns8(const float *p, int64_t stride, vf out[8]) {
    for (int i = 0; i < 8; i++) out[i] = v_load(p + i * stride);
    v_transpose(out);
}

/* VW vectors to one: element i is the sum of r[i]'s elements. Each step halves the vectors. */
static inline vf v_sums(vf r[VW]) {
    vf t[4];
    for (int i = 0; i < 4; i++)
        t[i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]) + _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    for (int i = 0; i < 2; i++) {
        __m256d x = _mm256_castps_pd(t[2 * i]), y = _mm256_castps_pd(t[2 * i + 1]);
        t[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y)) + _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
    }
    return _mm256_permute2f128_ps(t[0], t[1], 0x20) + _mm256_permute2f128_ps(t[0], t[1], 0x31);
}

#endif
