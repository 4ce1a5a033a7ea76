/* Blocks of attention as operands of bf16 products: both kernels of bf16 attention are made of these.
 *
 * All is bf16 and packed once for each use. A block is LINES queries by SIDE keys. */
#ifndef TAPER_SIMD_ATTENTION_BF16_H
#define TAPER_SIMD_ATTENTION_BF16_H

#include "backend/cpu/simd/attention.h"

#define SIDE  128                            /* keys of a block: whole panels */
#define LINES (SIDE / BF16_ROWS * BF16_ROWS) /* queries of one: so are these */
#define EDGE  BF16_COLUMNS

static inline int64_t words_of(int64_t steps) {
    return round_up(ceil_div(steps, 2), BF16_UNIT);
}

static inline tpi_matrix from_row(tpi_matrix x, int64_t row) {
    x.data = tpi_matrix_at(&x, row, 0);
    return x;
}

/* Block i of all groups' keys, from row s on: n of them are seen by any query, if any is. */
typedef struct group_keys {
    int64_t group, s, n;
    tpi_matrix k, v;
} group_keys;

static inline group_keys group_keys_of(const attention *p, int64_t i, int64_t blocks) {
    int64_t group = i / blocks, s = i % blocks * SIDE, b = group / p->groups, g = group % p->groups;
    return (group_keys){group, s, least(SIDE, last_key(p, b) - s), from_row(head_matrix(p, K, b, g), s),
                        from_row(head_matrix(p, V, b, g), s)};
}

/* The bf16 in the room of a block of floats, in whose rows they are. */
static inline tpi_matrix rounded(const float *block) {
    return (tpi_matrix){block, 2 * SIDE, 1, TP_BF16};
}

/* x [rows, steps] as the first operand. */
static inline void pack_left(tpi_matrix x, int64_t rows, int64_t steps, float *out) {
    const tpi_term term = {x, {.dtype = TP_BF16}, steps};
    TPI_SIMD(bf16_tiling).pack_a(&term, 0, 0, rows, words_of(steps), out, BF16_ROWS * words_of(steps));
}

/* x [steps, columns] as the second one, panels `stride` floats apart. */
static inline void pack_right(tpi_matrix x, int64_t steps, int64_t columns, float *out, int64_t stride) {
    const tpi_term term = {{.dtype = TP_BF16}, x, steps};
    TPI_SIMD(bf16_tiling).pack_b(&term, 0, 0, words_of(steps), columns, out, stride);
}

/* c [rows, columns] (row stride ld) = or += a · b over so many words. */
static inline void multiply(int64_t rows, int64_t columns, int64_t words, const float *a, const float *b,
                            int64_t stride, float *c, int64_t ld, bool add) {
    for (int64_t j = 0; j < columns; j += EDGE) TPI_SIMD(bf16_panel)
    (rows, least(EDGE, columns - j), words, a, b + j / EDGE * stride, EDGE, NULL, c + j, ld, add);
}

#endif
