/* The instructions for products of bf16: a dot of pairs (AVX512_BF16) or of tiles (AMX).
 *
 * BF16_PAIRS or BF16_TILES says which of the two this library of kernels has; with neither, bf16 is widened
 * to f32. Tests define EMULATE_PAIRS or EMULATE_TILES and get the same in plain C on any processor. */
#ifndef TAPER_SIMD_BF16_H
#define TAPER_SIMD_BF16_H

#include "backend/cpu/simd/vec.h"

#if defined(__AMX_BF16__) || defined(EMULATE_TILES)
#define BF16_TILES 1
#elif defined(__AVX512BF16__) || defined(EMULATE_PAIRS)
#define BF16_PAIRS 1
#endif
#if defined(BF16_TILES) || defined(BF16_PAIRS)
#define BF16_PRODUCTS 1
#else
#define BF16_PRODUCTS 0
#endif

/* Words of two bf16: those that the elements of `low` and `high` are, without rounding. */
INLINE vf v_pair(vf low, vf high) {
    return (vf)((vu)low >> 16 | (vu)high);
}

/* c + the dot product of each word of a and b, where BF16_DOTS: there may be tiles, too. */
#if defined(__AVX512BF16__)
#define BF16_DOTS 1
INLINE vf v_dot(vf a, vf b, vf c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
#elif defined(EMULATE_PAIRS)
#define BF16_DOTS 1
INLINE vf v_dot(vf a, vf b, vf c) {
    const vu upper = (vu)v_seti((int32_t)0xffff0000u);
    c = v_fma((vf)((vu)a & upper), (vf)((vu)b & upper), c);
    return v_fma((vf)((vu)a << 16), (vf)((vu)b << 16), c);
}
#else
#define BF16_DOTS 0
#endif

/* sum + x·y, where `pairs` of words of two bf16. */
INLINE vf v_multiply_add(bool pairs, vf x, vf y, vf sum) {
#if BF16_DOTS
    if (pairs) return v_dot(x, y, sum);
#endif
    (void)pairs;
    return v_fma(x, y, sum);
}

/* ---- tiles: 16 rows of 16 words; which of the eight is a constant ---- */

#define TILE_ROWS  16
#define TILE_WORDS 16

#if defined(__AMX_BF16__)

/* The thread's tiles are in use until they are released: beyond a product they would only burden what
 * switches threads. Some compilers do not know that the loads read memory. */
INLINE void tiles_begin(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}
#define MEMORY_READ() __asm__ volatile("" ::: "memory")
#define tiles_end()   _tile_release()
#define tile_zero(t)  _tile_zero(t)
/* Rows `stride` words apart; streamed: used once. */
#define tile_load(t, from, stride)                                                                           \
    do {                                                                                                     \
        MEMORY_READ();                                                                                       \
        _tile_loadd(t, from, 4 * (stride));                                                                  \
    } while (0)
#define tile_stream(t, from, stride)                                                                         \
    do {                                                                                                     \
        MEMORY_READ();                                                                                       \
        _tile_stream_loadd(t, from, 4 * (stride));                                                           \
    } while (0)
#define tile_store(t, to, stride) _tile_stored(t, to, 4 * (stride))
/* c += a·b: a's rows hold steps, b's words are its columns. */
#define tile_dot(c, a, b) _tile_dpbf16ps(c, a, b)

#elif defined(EMULATE_TILES)

static _Thread_local float tiles[8][TILE_ROWS][TILE_WORDS];

INLINE void tiles_begin(void) {}
INLINE void tiles_end(void) {
    memset(tiles, 0xff, sizeof tiles);
}
INLINE void tile_zero(int t) {
    memset(tiles[t], 0, sizeof tiles[t]);
}
INLINE void tile_load(int t, const float *from, int64_t stride) {
    for (int i = 0; i < TILE_ROWS; i++) memcpy(tiles[t][i], from + i * stride, sizeof tiles[t][i]);
}
#define tile_stream tile_load
INLINE void tile_store(int t, float *to, int64_t stride) {
    for (int i = 0; i < TILE_ROWS; i++) memcpy(to + i * stride, tiles[t][i], sizeof tiles[t][i]);
}
INLINE void tile_dot(int c, int a, int b) {
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < TILE_WORDS; j++)
            for (int s = 0; s < 2 * TILE_WORDS; s++) {
                uint16_t x, y;
                memcpy(&x, (const char *)tiles[a][i] + 2 * s, sizeof x);
                memcpy(&y, (const char *)&tiles[b][s / 2][j] + 2 * (s % 2), sizeof y);
                tiles[c][i][j] += tpi_bf16_to_f32(x) * tpi_bf16_to_f32(y);
            }
}

#endif
#endif
