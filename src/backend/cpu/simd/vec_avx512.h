/* Vectors of 16 floats: AVX-512 F, BW, DQ, VL. Partial loads and stores are single masked instructions. */
#ifndef TAPER_SIMD_VEC_AVX512_H
#define TAPER_SIMD_VEC_AVX512_H

#include <immintrin.h>

#define VW 16
typedef __m512 vf;
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64))); /* arithmetic that wraps */
typedef __mmask16 vm;

static inline vm v_first(int64_t n) {
    return (vm)((1u << n) - 1u);
}

static inline vf v_set(float s) {
    return _mm512_set1_ps(s);
}
static inline vi v_seti(int32_t s) {
    return (vi)_mm512_set1_epi32(s);
}
static inline vf v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
static inline void v_stream(float *p, vf x) {
    _mm512_stream_ps(p, x);
}
static inline vf v_pin(vf x) { /* keeps x in a register: it is used more than once */
    __asm__("" : "+v"(x));
    return x;
}
static inline void v_hold(vf x) { /* x keeps its register up to here: no sum is moved into it */
    __asm__ volatile("" ::"v"(x));
}
static inline vf v_load_n(const float *p, int64_t n) {
    return _mm512_maskz_loadu_ps(v_first(n), p);
}
static inline void v_store_n(float *p, vf x, int64_t n) {
    _mm512_mask_storeu_ps(p, v_first(n), x);
}

static inline vf v_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline vf v_load_bf16_n(const uint16_t *p, int64_t n) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(v_first(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline __m256i v_bf16_bits(vf x) { /* to nearest even; NaN stays NaN */
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(x); /* what is subnormal becomes zero */
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_epi32(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
#endif
}
static inline void v_store_bf16(uint16_t *p, vf x) {
    _mm256_storeu_si256((__m256i *)p, v_bf16_bits(x));
}
static inline void v_store_bf16_n(uint16_t *p, vf x, int64_t n) {
    _mm256_mask_storeu_epi16(p, v_first(n), v_bf16_bits(x));
}
static inline vf v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf v_load_f16_n(const uint16_t *p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_first(n), p));
}
static inline void v_store_f16(uint16_t *p, vf x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline void v_store_f16_n(uint16_t *p, vf x, int64_t n) {
    _mm256_mask_storeu_epi16(p, v_first(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

static inline vf v_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf v_fnma(vf a, vf b, vf c) {
    return _mm512_fnmadd_ps(a, b, c);
} /* c - a·b */
static inline vf v_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
} /* b where either is NaN */
static inline vf v_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
static inline vf v_sqrt(vf a) {
    return _mm512_sqrt_ps(a);
}
static inline vf v_round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vi v_to_int(vf a) {
    return (vi)_mm512_cvttps_epi32(a);
}
static inline vf v_to_float(vi a) {
    return _mm512_cvtepi32_ps((__m512i)a);
}

/* The upper halves of the 64-bit products of unsigned elements. */
static inline vi v_mul_high(vi a, uint32_t m) {
    __m512i factor = _mm512_set1_epi32((int)m), x = (__m512i)a;
    __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, factor), 32);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
    return (vi)_mm512_mask_mov_epi32(even, 0xaaaa, odd);
}

static inline vm v_eq(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
static inline vm v_ne(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ);
}
static inline vm v_lt(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline vm v_le(vf a, vf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}
static inline vf v_blend(vm m, vf yes, vf no) {
    return _mm512_mask_blend_ps(m, no, yes);
}
static inline vf v_keep(vf x, int64_t n) {
    return _mm512_maskz_mov_ps(v_first(n), x);
} /* zeros behind n */

static inline float v_sum(vf a) {
    return _mm512_reduce_add_ps(a);
}
static inline float v_top(vf a) {
    return _mm512_reduce_max_ps(a);
}

/* x · 2^n, n a whole number. */
#define v_scale v_scale2
static inline vf v_scale2(vf x, vf n) {
    return _mm512_scalef_ps(x, n);
}

/* Four vectors as 4×4 matrices, one in each quarter, transposed. */
static inline void v_transpose_quarters(vf r[4]) {
    __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
    __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
    __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
    __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
    r[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    r[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    r[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}

static inline void v_transpose(vf r[VW]) {
    vf t[16];
    for (int i = 0; i < 16; i += 4) v_transpose_quarters(r + i);
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

static inline vf v_two_lines(const float *low, const float *high) {
    __m512 x = _mm512_castps256_ps512(_mm256_loadu_ps(low));
    return _mm512_insertf32x8(x, _mm256_loadu_ps(high), 1);
}

/* VW lines of 8 floats, `stride` apart, turned: element i of out[j] is p[i·stride + j]. */
static inline void v_columns8(const float *p, int64_t stride, vf out[8]) {
    vf r[8];
    for (int i = 0; i < 8; i++) {
        const float *line = p + (i < 4 ? i : i + 4) * stride;
        r[i] = v_two_lines(line, line + 4 * stride);
    }
    v_transpose_quarters(r), v_transpose_quarters(r + 4);
    for (int j = 0; j < 4; j++) {
        out[j] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
        out[j + 4] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xdd);
    }
}

/* VW rows, `stride` bytes apart, transposed: their quarters are put together as they are loaded, which takes
 * half the shuffles. */
static inline void v_load_transposed(const char *rows, int64_t stride, vf r[VW]) {
    for (int q = 0; q < 4; q++) {
        for (int i = 0; i < 4; i++) {
            const char *from = rows + i * stride + 16 * q;
            vf x = _mm512_castps128_ps512(_mm_loadu_ps((const float *)(const void *)from));
            for (int part = 1; part < 4; part++)
                x = _mm512_mask_broadcast_f32x4(
                    x, (__mmask16)(0xf << 4 * part),
                    _mm_loadu_ps((const float *)(const void *)(from + 4 * part * stride)));
            r[4 * q + i] = x;
        }
        v_transpose_quarters(r + 4 * q);
    }
}

/* Two vectors' halves of one kind, added: what a step of v_sums does to a pair. */
static inline vf v_pair_quarters(vf a, vf b) {
    return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}
static inline vf v_pair_words(vf a, vf b) {
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)) + _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
}

/* VW vectors to one: element i is the sum of r[i]'s elements. Each step halves the vectors. */
static inline vf v_sums(vf r[VW]) {
    vf t[8];
    for (int i = 0; i < 8; i++)
        t[i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]) + _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    for (int i = 0; i < 4; i++) t[i] = v_pair_words(t[2 * i], t[2 * i + 1]);
    for (int i = 0; i < 2; i++) t[i] = v_pair_quarters(t[2 * i], t[2 * i + 1]);
    return v_pair_quarters(t[0], t[1]);
}

#endif
