/* bf16 panels multiplied by AMX: four tiles of sums, 32 rows by 32 columns.
 *
 * The trick: a step of 32 bf16 loads two tiles of either operand for four products, so the loads hide behind
 * them. Sums stay in tiles over all words of a panel; both operands come from the second-level cache, a's
 * tiles fetched two steps ahead. The sums of a block that is cut at its edge go through a whole one beside
 * it. Between steps a piece of the next panel is packed now and then: packing touches no tile. */
#include "backend/cpu/simd/gemm.h"

#if defined(BF16_TILES)

#define SIDE (2 * TILE_ROWS)     /* of a block of sums */
#define STEP (SIDE * TILE_WORDS) /* words of a panel in a step */
#define TILE (STEP / 2)          /* words of a tile */

/* Fetches the tiles of a step to the first-level cache. */
INLINE void fetch_step(const float *from) {
    UNROLL for (int i = 0; i < SIDE; i++) __builtin_prefetch(from + i * TILE_WORDS, 0, 3);
}

/* a [words / 16][32][16] · b [words / 16][2][16][16]. */
INLINE void block(int64_t words, const float *a, const float *b, tpi_soon *soon, float *c, int64_t ldc,
                  bool accumulate) {
    float *right = c + TILE_WORDS, *below = c + TILE_ROWS * ldc, *last = below + TILE_WORDS;
    if (accumulate) {
        tile_load(0, c, ldc);
        tile_load(1, right, ldc);
        tile_load(2, below, ldc);
        tile_load(3, last, ldc);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (; words > 0; words -= TILE_WORDS, a += STEP, b += STEP) {
        tpi_soon_step(soon);
        fetch_step(a + 2 * STEP);
        tile_stream(4, a, TILE_WORDS);
        tile_stream(5, a + TILE, TILE_WORDS);
        tile_load(6, b, TILE_WORDS);
        tile_load(7, b + TILE, TILE_WORDS);
        tile_dot(0, 4, 6);
        tile_dot(2, 5, 6);
        tile_dot(1, 4, 7);
        tile_dot(3, 5, 7);
    }
    tile_store(0, c, ldc);
    tile_store(1, right, ldc);
    tile_store(2, below, ldc);
    tile_store(3, last, ldc);
}

static void copy_block(int64_t rows, int64_t n, const float *from, int64_t from_ld, float *to,
                       int64_t to_ld) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_ld, from + i * from_ld, sizeof(float) * (size_t)n);
}

static void cut_block(int64_t rows, int64_t n, int64_t words, const float *a, const float *b, tpi_soon *soon,
                      float *c, int64_t ldc, bool accumulate) {
    float whole[SIDE * SIDE] = {0};
    if (accumulate) copy_block(rows, n, c, ldc, whole, SIDE);
    block(words, a, b, soon, whole, SIDE, accumulate);
    copy_block(rows, n, whole, SIDE, c, ldc);
}

void TPI_SIMD(bf16_panel)(int64_t rows, int64_t n, int64_t words, const float *a, const float *b,
                          int64_t b_step, tpi_soon *soon, float *c, int64_t ldc, bool accumulate) {
    tpi_soon none = {0};
    (void)b_step;
    if (!soon) soon = &none;
    tpi_soon_begin(soon, ceil_div(rows, SIDE) * words / TILE_WORDS);
    tiles_begin();
    for (; rows > 0; rows -= SIDE, a += words * SIDE, c += SIDE * ldc) {
        if (rows >= SIDE && n == SIDE)
            block(words, a, b, soon, c, ldc, accumulate);
        else
            cut_block(least(rows, SIDE), n, words, a, b, soon, c, ldc, accumulate);
    }
    tiles_end();
}

#endif
