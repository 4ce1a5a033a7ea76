/* The register tile of the matrix product: MR rows by NR columns, one rank-1 update a word; of pairs of bf16,
 * two.
 *
 * The trick: the tile's size is a constant in each instance, so that all accumulators live in registers and a
 * step is nothing but two loads of b, a broadcast of each a and the fused multiply-adds: a processor whose
 * other hardware thread is busy starts half as many instructions, and then each one more counts. What it does
 * not foresee is fetched early: c's rows, the next panel of b, and rows of a b that is read in place, a page
 * apart. */
#include "backend/cpu/simd/gemm.h"

#if !defined(BF16_TILES)

#if defined(BF16_PAIRS)
#define MULTIPLY_ADD v_dot
#define PANEL        TPI_SIMD(bf16_panel)
#else
#define MULTIPLY_ADD v_fma
#define PANEL        TPI_SIMD(gemm_panel)
#endif

#define AHEAD 12 /* steps from the fetching of a row of b to its use */

/* The operands are held to the end of their use: a compiler that puts sums in their registers, one at a time,
 * ends with sums in memory. */
INLINE void step(int rows, int vectors, const float *a, const float *b, vf acc[MR][2]) {
    vf b0 = v_load(b), b1 = vectors == 2 ? v_load(b + VW) : b0;
    UNROLL for (int i = 0; i < rows; i++) {
        vf x = v_set(a[i]);
        acc[i][0] = MULTIPLY_ADD(x, b0, acc[i][0]);
        if (vectors == 2) acc[i][1] = MULTIPLY_ADD(x, b1, acc[i][1]);
        v_hold(x);
    }
    v_hold(b0), v_hold(b1);
}

/* A packed b: its address and a's advance alike, and nothing has to be fetched. */
INLINE void packed_steps(int rows, int vectors, int64_t k, const float *a, const float *b, vf acc[MR][2]) {
    for (; k >= 4; k -= 4, a += 4 * MR, b += 4 * NR)
        UNROLL for (int s = 0; s < 4; s++) step(rows, vectors, a + s * MR, b + s * NR, acc);
    for (; k > 0; k--, a += MR, b += NR) step(rows, vectors, a, b, acc);
}

INLINE void steps_in_place(int rows, int vectors, int64_t k, const float *a, const float *b, int64_t b_step,
                           vf acc[MR][2]) {
    for (; k > 0; k--, a += MR, b += b_step) {
        __builtin_prefetch(b + AHEAD * b_step, 0, 3);
        if (vectors == 2) __builtin_prefetch(b + AHEAD * b_step + VW, 0, 3);
        step(rows, vectors, a, b, acc);
    }
}

INLINE void tile(int rows, int vectors, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,
                 float *c, int64_t ldc, bool accumulate) {
    vf acc[MR][2];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[i][v] = v_set(0.0f);
            if (accumulate) __builtin_prefetch(c + i * ldc + v * VW, 1, 3);
        }
    }
    if (b_step == NR)
        packed_steps(rows, vectors, k, a, b, acc);
    else
        steps_in_place(rows, vectors, k, a, b, b_step, acc);
    int64_t last = n - (vectors - 1) * VW;
    UNROLL for (int i = 0; i < rows; i++) {
        float *row = c + i * ldc;
        UNROLL for (int v = 0; v < vectors; v++) {
            if (v == vectors - 1 && last < VW) {
                vf old = accumulate ? v_load_n(row + v * VW, last) : v_set(0.0f);
                v_store_n(row + v * VW, old + acc[i][v], last);
            } else {
                vf old = accumulate ? v_load(row + v * VW) : v_set(0.0f);
                v_store(row + v * VW, old + acc[i][v]);
            }
        }
    }
}

/* ---- a panel of b over panels of a ---- */

typedef void tile_fn(int64_t n, int64_t k, const float *a, const float *b, int64_t b_step, float *c,
                     int64_t ldc, bool accumulate);

#define TILE(r, v)                                                                                           \
    static void tile_##r##_##v(int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,         \
                               float *c, int64_t ldc, bool accumulate) {                                     \
        tile(r, v, n, k, a, b, b_step, c, ldc, accumulate);                                                  \
    }
#define TILES(r) TILE(r, 1) TILE(r, 2)
#define NAMES(r)                                                                                             \
    { tile_##r##_1, tile_##r##_2 }

/* clang-format off */
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5)
#if MR > 6
TILES(6) TILES(7) TILES(8) TILES(9) TILES(10) TILES(11) TILES(12) TILES(13)
#endif

static tile_fn *const rest[MR - 1][2] = { /* fewer than MR rows */
    NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5),
#if MR > 6
    NAMES(6), NAMES(7), NAMES(8), NAMES(9), NAMES(10), NAMES(11), NAMES(12), NAMES(13),
#endif
};
/* clang-format on */

INLINE void panel(int vectors, int64_t rows, int64_t n, int64_t k, const float *a, const float *b,
                  int64_t b_step, tpi_soon *soon, float *c, int64_t ldc, bool accumulate) {
    int64_t share = soon ? ceil_div(soon->lines * MR, rows) : 0;
    for (; rows >= MR; rows -= MR, a += MR * k, c += MR * ldc) {
        if (soon) fetch_lines(soon, share);
        tile(MR, vectors, n, k, a, b, b_step, c, ldc, accumulate);
    }
    if (rows) rest[rows - 1][vectors - 1](n, k, a, b, b_step, c, ldc, accumulate);
}

void PANEL(int64_t rows, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step, tpi_soon *soon,
           float *c, int64_t ldc, bool accumulate) {
    if (n == NR)
        panel(2, rows, NR, k, a, b, b_step, soon, c, ldc, accumulate);
    else if (n > VW)
        panel(2, rows, n, k, a, b, b_step, soon, c, ldc, accumulate);
    else
        panel(1, rows, n, k, a, b, b_step, soon, c, ldc, accumulate);
}

#endif
