/* The register tile of the matrix product: MR rows by NR columns, one rank-1 update a step; of words of two
 * bf16, two of them.
 *
 * The trick: the tile's size is a constant in each instance, so that all accumulators live in registers and a
 * step is nothing but two loads of b, a broadcast of each a and the fused multiply-adds: a processor whose
 * other hardware thread is busy starts half as many instructions, and then each one more counts. What it does
 * not foresee is fetched early: c's rows, the next panel of b, and rows of a b that is read in place, a page
 * apart. */
#include "backend/cpu/simd/gemm.h"

#define AHEAD 12 /* steps from the fetching of a row of b to its use */

enum { SINGLE, PAIR }; /* what a word is: an f32, or two bf16 */

INLINE vf multiply_add(int kind, vf a, vf b, vf c) {
#if defined(BF16_PAIRS)
    if (kind == PAIR) return v_dot(a, b, c);
#endif
    (void)kind;
    return v_fma(a, b, c);
}

/* The operands are held to the end of their use: a compiler that puts sums in their registers, one at a time,
 * ends with sums in memory. */
INLINE void step(int kind, int rows, int vectors, const float *a, const float *b, vf acc[MR][2]) {
    vf b0 = v_load(b), b1 = vectors == 2 ? v_load(b + VW) : b0;
    UNROLL for (int i = 0; i < rows; i++) {
        vf x = v_set(a[i]);
        acc[i][0] = multiply_add(kind, x, b0, acc[i][0]);
        if (vectors == 2) acc[i][1] = multiply_add(kind, x, b1, acc[i][1]);
        v_hold(x);
    }
    v_hold(b0), v_hold(b1);
}

/* A packed b: its address and a's advance alike, and nothing has to be fetched. */
INLINE void packed_steps(int kind, int rows, int vectors, int64_t k, const float *a, const float *b,
                         vf acc[MR][2]) {
    for (; k >= 4; k -= 4, a += 4 * MR, b += 4 * NR)
        UNROLL for (int s = 0; s < 4; s++) step(kind, rows, vectors, a + s * MR, b + s * NR, acc);
    for (; k > 0; k--, a += MR, b += NR) step(kind, rows, vectors, a, b, acc);
}

INLINE void steps_in_place(int rows, int vectors, int64_t k, const float *a, const float *b, int64_t b_step,
                           vf acc[MR][2]) {
    for (; k > 0; k--, a += MR, b += b_step) {
        __builtin_prefetch(b + AHEAD * b_step, 0, 3);
        if (vectors == 2) __builtin_prefetch(b + AHEAD * b_step + VW, 0, 3);
        step(SINGLE, rows, vectors, a, b, acc);
    }
}

INLINE void tile(int kind, int rows, int vectors, int64_t n, int64_t k, const float *a, const float *b,
                 int64_t b_step, float *c, int64_t ldc, bool accumulate) {
    vf acc[MR][2];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[i][v] = v_set(0.0f);
            if (accumulate) __builtin_prefetch(c + i * ldc + v * VW, 1, 3);
        }
    }
    if (kind == PAIR || b_step == NR)
        packed_steps(kind, rows, vectors, k, a, b, acc);
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

#define TILE(kind, r, v)                                                                                     \
    static void tile_##kind##_##r##_##v(int64_t n, int64_t k, const float *a, const float *b,                \
                                        int64_t b_step, float *c, int64_t ldc, bool accumulate) {            \
        tile(kind, r, v, n, k, a, b, b_step, c, ldc, accumulate);                                            \
    }
#define TILES(kind, r) TILE(kind, r, 1) TILE(kind, r, 2)
#define NAMES(kind, r) {tile_##kind##_##r##_1, tile_##kind##_##r##_2},

/* Tiles of fewer than MR rows, by rows - 1 and vectors - 1. */
/* clang-format off */
#define EACH_OF_5(X, kind) X(kind, 1) X(kind, 2) X(kind, 3) X(kind, 4) X(kind, 5)
#if MR > 6
#define EACH_REST(X, kind) EACH_OF_5(X, kind) X(kind, 6) X(kind, 7) X(kind, 8) X(kind, 9) X(kind, 10)        \
    X(kind, 11) X(kind, 12) X(kind, 13)
#else
#define EACH_REST EACH_OF_5
#endif

EACH_REST(TILES, SINGLE)
static tile_fn *const rest_single[MR - 1][2] = {EACH_REST(NAMES, SINGLE)};
/* clang-format on */

INLINE void panel(int kind, tile_fn *const rest[MR - 1][2], int vectors, int64_t rows, int64_t n, int64_t k,
                  const float *a, const float *b, int64_t b_step, tpi_fetch *soon, float *c, int64_t ldc,
                  bool accumulate) {
    int64_t share = soon ? ceil_div(soon->lines * MR, rows) : 0;
    for (; rows >= MR; rows -= MR, a += MR * k, c += MR * ldc) {
        if (soon) fetch_lines(soon, share);
        tile(kind, MR, vectors, n, k, a, b, b_step, c, ldc, accumulate);
    }
    if (rows) rest[rows - 1][vectors - 1](n, k, a, b, b_step, c, ldc, accumulate);
}

INLINE void panels(int kind, tile_fn *const rest[MR - 1][2], int64_t rows, int64_t n, int64_t k,
                   const float *a, const float *b, int64_t b_step, tpi_fetch *soon, float *c, int64_t ldc,
                   bool accumulate) {
    if (n == NR)
        panel(kind, rest, 2, rows, NR, k, a, b, b_step, soon, c, ldc, accumulate);
    else if (n > VW)
        panel(kind, rest, 2, rows, n, k, a, b, b_step, soon, c, ldc, accumulate);
    else
        panel(kind, rest, 1, rows, n, k, a, b, b_step, soon, c, ldc, accumulate);
}

void TPI_SIMD(gemm_panel)(int64_t rows, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,
                          tpi_fetch *soon, float *c, int64_t ldc, bool accumulate) {
    panels(SINGLE, rest_single, rows, n, k, a, b, b_step, soon, c, ldc, accumulate);
}

#if defined(BF16_PAIRS)

/* clang-format off */
EACH_REST(TILES, PAIR)
static tile_fn *const rest_pair[MR - 1][2] = {EACH_REST(NAMES, PAIR)};
/* clang-format on */

void TPI_SIMD(bf16_panel)(int64_t rows, int64_t n, int64_t words, const float *a, const float *b,
                          int64_t b_step, tpi_fetch *soon, float *c, int64_t ldc, bool accumulate) {
    panels(PAIR, rest_pair, rows, n, words, a, b, b_step, soon, c, ldc, accumulate);
}

#endif
