/* The register tile of the matrix product: MR rows by NR columns, one rank-1 update a step.
 *
 * The trick: the tile's size is a constant in each instance, so that all accumulators live in registers and a
 * step is nothing but two loads of b, a broadcast of each a and the fused multiply-adds. What the processor
 * does not foresee is fetched early: c's rows, and rows of a b that is read in place, a page apart. */
#include "backend/cpu/simd/gemm.h"

#define AHEAD 12 /* steps from the fetching of a row of b to its use */

INLINE void tile(int rows, int vectors, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,
                 float *c, int64_t ldc, bool accumulate) {
    vf acc[MR][2];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int v = 0; v < vectors; v++) {
            acc[i][v] = v_set(0.0f);
            if (accumulate) __builtin_prefetch(c + i * ldc + v * VW, 1, 3);
        }
    }
    for (int64_t p = 0; p < k; p++) {
        __builtin_prefetch(b + AHEAD * b_step, 0, 3);
        if (vectors == 2) __builtin_prefetch(b + AHEAD * b_step + VW, 0, 3);
        vf b0 = v_load(b), b1 = vectors == 2 ? v_load(b + VW) : b0;
        UNROLL for (int i = 0; i < rows; i++) {
            vf x = v_set(a[i]);
            acc[i][0] = v_fma(x, b0, acc[i][0]);
            if (vectors == 2) acc[i][1] = v_fma(x, b1, acc[i][1]);
        }
        a += MR, b += b_step;
    }
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
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
#if MR > 6
TILES(7) TILES(8) TILES(9) TILES(10) TILES(11) TILES(12)
#endif
#if MR > 12
TILES(13) TILES(14)
#endif

static tile_fn *const tiles[MR][2] = {
    NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6),
#if MR > 6
    NAMES(7), NAMES(8), NAMES(9), NAMES(10), NAMES(11), NAMES(12),
#endif
#if MR > 12
    NAMES(13), NAMES(14),
#endif
};
/* clang-format on */

void TPI_SIMD(gemm_tile)(int64_t rows, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,
                         float *c, int64_t ldc, bool accumulate) {
    tiles[rows - 1][n > VW](n, k, a, b, b_step, c, ldc, accumulate);
}
