/* The low-rank path for many rows: y = s·(x·A)·B, where A and B are so slim that they stay in the first-level
 * cache.
 *
 * The trick: a few rows go from x to y at once. Their h = s·x·A is one vector of dot products, which the
 * accumulators of a tile become by one reduction, and whose elements are broadcast as they multiply B. So x
 * is read once, y is written once, and h lives for a block of rows only. A and B are packed alike: for each
 * VW features one vector for each of the R columns of A, or rows of B. Where all is bf16 and pairs
 * are quicker, these are words: of two features of x and of A; of two elements of h, rounded, and two rows of
 * B. */
#include "backend/cpu/simd/gemm.h"
#include "backend/cpu/simd/row.h"

/* Where there are tiles, a dot of pairs is slower than f32. */
#if defined(BF16_PAIRS)
#define PAIRS 1
#else
#define PAIRS 0
#endif

#define UNIT  8 /* the rank is padded to 8 or 16 */
#define PAIR  2 /* rows of x a tile */
#define WIDE  (VW / PAIR)
#define BLOCK 36        /* rows; tiles of both kinds are whole */
#define FAR   (1 << 19) /* bytes */
#define NEAR  4096      /* floats of A, or of B, that stay near while a block of rows passes */

typedef struct slim {
    const tpi_gemm *down, *up;
    const float *a, *b; /* packed */
    float *h;           /* [BLOCK][R] */
    float scale;
    bool far;                   /* x does not fit the second-level cache */
    bool pairs;                 /* words of two bf16 are multiplied */
    int64_t k;                  /* features of x, or words of them */
    int64_t m0, rows, from, to; /* the block; features, or words, of x, or of y, from a step on */
} slim;

int64_t TPI_SIMD(lora_rows_rank)(void) {
    return 2 * UNIT;
}

static int64_t padded_rank(int64_t r) {
    return round_up(r, UNIT);
}

size_t TPI_SIMD(lora_rows_scratch)(int64_t n, int64_t k, int64_t r) {
    int64_t features = round_up(k, VW) + round_up(n, VW);
    if (r > TPI_SIMD(lora_rows_rank)()) return 0;
    return sizeof(float) * (size_t)((features + BLOCK) * padded_rank(r));
}

/* ---- packing ---- */

/* One step of UNIT lines whose numbers alternate: features are `stride` bytes apart, the lines side by side.
 */
INLINE void pack_across(const char *x, int dtype, int64_t stride, float *out) {
    float wide[VW * UNIT + VW];
    vf columns[UNIT];
    if (dtype == TP_F32) {
        v_columns8((const float *)(const void *)x, stride / (int64_t)sizeof(float), columns);
    } else {
        for (int f = 0; f < VW; f++) v_store(wide + f * UNIT, v_get(x + f * stride, dtype, 0, UNIT));
        v_columns8(wide, UNIT, columns);
    }
    UNROLL for (int c = 0; c < UNIT; c++) v_store(out + c * VW, columns[c]);
}

/* One step: VW features of `rows` lines, any strides. */
static void pack_step(const tpi_matrix *x, int64_t rows, int64_t j, float *out) {
    const int dtype = (int)x->dtype;
    if (x->cs == 1) {
        for (int64_t i = 0; i < rows; i++) v_store(out + i * VW, v_get(tpi_matrix_at(x, i, 0), dtype, j, VW));
    } else if (x->rs == 1 && rows % UNIT == 0) {
        for (int64_t i = 0; i < rows; i += UNIT)
            pack_across(tpi_matrix_at(x, i, j), dtype, x->cs * dtype_size(dtype), out + i * VW);
    } else {
        TPI_SIMD(pack_rows)(x, 0, j, rows, VW, out, VW);
    }
}

/* Lines of n elements to steps of [R][VW], zeros behind both. */
static void pack(const tpi_matrix *x, int64_t rows, int64_t n, float *out) {
    int64_t r = padded_rank(rows), whole = n / VW * VW;
    if (rows < r || whole < n) memset(out, 0, sizeof(float) * (size_t)(r * round_up(n, VW)));
    for (int64_t j = 0; j < whole; j += VW) pack_step(x, rows, j, out + j * r);
    if (whole < n) TPI_SIMD(pack_rows)(x, 0, whole, rows, n - whole, out + whole * r, VW);
}

/* Steps of [R][VW] words of two features, of lines of n bf16. */
static void pack_features(const tpi_matrix *x, int64_t rows, int64_t n, float *out) {
    const int64_t r = padded_rank(rows);
    float wide[2 * UNIT * 2 * VW + VW];
    memset(out, 0, sizeof(float) * (size_t)(r * round_up(n / 2, VW)));
    for (int64_t j = 0; j < n; j += 2 * VW, out += r * VW) {
        int64_t part = least(2 * VW, n - j);
        TPI_SIMD(pack_rows)(x, 0, j, rows, part, wide, 2 * VW);
        for (int64_t i = 0; i < rows; i++)
            TPI_SIMD(from_f32)(wide + i * 2 * VW, out + i * VW, TP_BF16, 0, part);
    }
}

/* Packed steps of [R][VW], in their place, as [R / 2][VW] words of two rows. */
static void join_rows(float *b, int64_t steps, int64_t r) {
    float *out = b;
    for (int64_t i = 0; i < steps * r; i += 2, b += 2 * VW, out += VW)
        v_store(out, v_pair(v_load(b), v_load(b + VW)));
}

/* ---- h = s·x·A ---- */

/* One step of a tile: PAIR vectors of x against WIDE columns of A. */
INLINE void down_step(const vf x[PAIR], const float *a, bool pairs, vf acc[VW]) {
    UNROLL for (int j = 0; j < WIDE; j++) {
        vf column = v_pin(v_load(a + j * VW));
        UNROLL for (int t = 0; t < PAIR; t++) acc[t * WIDE + j] =
            v_multiply_add(pairs, x[t], column, acc[t * WIDE + j]);
    }
}

/* Adds the chunk's part to h for rows i, i + 1 and columns q ... q + WIDE of A. */
INLINE void down_tile(const slim *s, int dtype, bool pairs, int r, int64_t i, int64_t q) {
    const tpi_matrix *from = &s->down->term[0].a;
    const char *x0 = tpi_matrix_at(from, s->m0 + i, 0);
    const char *x1 = tpi_matrix_at(from, s->m0 + least(i + 1, s->rows - 1), 0);
    const float *a = s->a + s->from * r + q * VW;
    int64_t whole = least(s->to, s->k / VW * VW), k = s->from;
    vf acc[VW];
    UNROLL for (int t = 0; t < VW; t++) acc[t] = v_set(0.0f);
    for (; k < whole; k += VW, a += r * VW) {
        vf x[PAIR] = {v_get(x0, dtype, k, VW), v_get(x1, dtype, k, VW)};
        down_step(x, a, pairs, acc);
    }
    if (k < s->to) {
        vf x[PAIR] = {v_get(x0, dtype, k, s->k - k), v_get(x1, dtype, k, s->k - k)};
        down_step(x, a, pairs, acc);
    }
    vf sums = v_sums(acc) * v_set(s->scale);
    float *h0 = s->h + i * r + q, *h1 = i + 1 < s->rows ? h0 + r : h0;
    float part[VW];
    v_store(part, sums);
    UNROLL for (int j = 0; j < WIDE; j++) h0[j] += part[j];
    if (h1 != h0) UNROLL for (int j = 0; j < WIDE; j++) h1[j] += part[WIDE + j];
}

/* Asks for the chunk of PAIR rows of x from i on, if x is far: pieces of rows are too short for the processor
 * to see where they lead. */
INLINE void fetch_pair(const slim *s, int dtype, int64_t i) {
    const int64_t bytes = (s->to - s->from) * dtype_size(dtype), end = least(i + PAIR, s->rows);
    for (; s->far && i < end; i++) {
        const char *piece = tpi_matrix_at(&s->down->term[0].a, s->m0 + i, 0);
        piece += s->from * dtype_size(dtype);
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(piece + b, 0, 3);
    }
}

INLINE void down_rows(const slim *s, int dtype, bool pairs, int r) {
    for (int64_t i = 0; i < s->rows; i += PAIR) {
        fetch_pair(s, dtype, i + PAIR);
        for (int64_t q = 0; q < r; q += WIDE) down_tile(s, dtype, pairs, r, i, q);
    }
}

/* ---- y = h·B ---- */

/* Rows of y, and steps of VW features at a time: as many sums as there are registers for, so that a load
 * serves several multiply-adds and none waits. */
#define UP_ROWS  (VW == 16 ? 4 : 3)
#define UP_STEPS 4

/* `steps` vectors of UP_ROWS rows of y, from feature n on; the last may be cut to `part` features. r:
 * elements of h, or words. */
INLINE void up_step(char *const row[UP_ROWS], int dtype, bool pairs, int steps, int r,
                    const float *const h[UP_ROWS], const float *b, int64_t n, int64_t part) {
    vf y[UP_ROWS][UP_STEPS];
    UNROLL for (int t = 0; t < UP_ROWS; t++) {
        UNROLL for (int v = 0; v < steps; v++) y[t][v] = v_set(0.0f);
    }
    UNROLL for (int j = 0; j < r; j++) {
        vf factor[UP_ROWS];
        UNROLL for (int t = 0; t < UP_ROWS; t++) factor[t] = v_set(h[t][j]);
        UNROLL for (int v = 0; v < steps; v++) {
            vf w = v_pin(v_load(b + (v * r + j) * VW));
            UNROLL for (int t = 0; t < UP_ROWS; t++) y[t][v] = v_multiply_add(pairs, factor[t], w, y[t][v]);
        }
    }
    UNROLL for (int t = 0; t < UP_ROWS; t++) {
        UNROLL for (int v = 0; v < steps; v++) v_put(row[t], dtype, n + v * VW, y[t][v], part);
    }
}

/* Rows i ... of y from h. */
INLINE void up_tile(const slim *s, int dtype, bool pairs, int r, int64_t i) {
    const float *h[UP_ROWS];
    char *row[UP_ROWS];
    UNROLL for (int t = 0; t < UP_ROWS; t++) {
        int64_t line = least(i + t, s->rows - 1);
        row[t] = (char *)s->up->c + (s->m0 + line) * s->up->rs * dtype_size(dtype);
        h[t] = s->h + line * r;
    }
    int64_t end = least(s->to, s->up->n), n = s->from;
    const int steps = pairs ? r / 2 : r;
    for (; n + UP_STEPS * VW <= end; n += UP_STEPS * VW)
        up_step(row, dtype, pairs, UP_STEPS, steps, h, s->b + n * steps, n, VW);
    for (; n < end; n += VW) up_step(row, dtype, pairs, 1, steps, h, s->b + n * steps, n, least(VW, end - n));
}

INLINE void up_rows(const slim *s, int dtype, bool pairs, int r) {
    for (int64_t i = 0; i < s->rows; i += UP_ROWS) up_tile(s, dtype, pairs, r, i);
}

/* The block's h to words, in the first half of each row. */
static void round_h(const slim *s, int64_t r) {
    for (int64_t i = 0; i < s->rows; i++) TPI_SIMD(from_f32)(s->h + i * r, s->h + i * r, TP_BF16, 0, r);
}

/* ---- by dtype and rank ---- */

#define BY_RANK(name, dtype, pairs)                                                                          \
    (rank == UNIT ? name(s, dtype, pairs, UNIT) : name(s, dtype, pairs, 2 * UNIT))
#define BY_DTYPE(name, dtype)                                                                                \
    switch (dtype) {                                                                                         \
    case TP_F32:                                                                                             \
        BY_RANK(name, TP_F32, false);                                                                        \
        break;                                                                                               \
    case TP_BF16:                                                                                            \
        BY_RANK(name, TP_BF16, false);                                                                       \
        break;                                                                                               \
    default:                                                                                                 \
        BY_RANK(name, TP_F16, false);                                                                        \
    }

static void down(const slim *s, int64_t rank) {
    if (PAIRS && s->pairs) {
        BY_RANK(down_rows, TP_F32, true);
        return;
    }
    BY_DTYPE(down_rows, s->down->term[0].a.dtype)
}

static void up(const slim *s, int64_t rank) {
    if (PAIRS && s->pairs) {
        BY_RANK(up_rows, TP_BF16, true);
        return;
    }
    BY_DTYPE(up_rows, s->up->c_dtype)
}

/* Whether x and A are words of two bf16, and B and y bf16 too. */
static bool pairs_of(const tpi_gemm *first, const tpi_gemm *second) {
    return PAIRS && tpi_term_is_bf16(first->term) && second->term[0].b.dtype == TP_BF16 &&
           second->c_dtype == TP_BF16 && first->term[0].k % 2 == 0;
}

void TPI_SIMD(lora_rows)(const tpi_gemm *first, const tpi_gemm *second, float scale, int64_t m0, int64_t m1,
                         float *scratch) {
    int64_t rank = first->n, r = padded_rank(rank), k = first->term[0].k, n = second->n;
    float *a = scratch, *b = a + round_up(k, VW) * r, *h = b + round_up(n, VW) * r;
    tpi_matrix columns = tpi_matrix_transposed(first->term[0].b);
    const bool far = first->m * k * dtype_size(first->term[0].a.dtype) > FAR;
    const bool pairs = pairs_of(first, second);
    slim s = {.down = first,
              .up = second,
              .a = a,
              .b = b,
              .h = h,
              .scale = scale,
              .far = far,
              .pairs = pairs,
              .k = k};
    pack(&second->term[0].b, rank, n, b);
    if (pairs) {
        s.k = k / 2;
        pack_features(&columns, rank, k, a);
        join_rows(b, round_up(n, VW) / VW, r);
    } else {
        pack(&columns, rank, k, a);
    }
    for (s.m0 = m0; s.m0 < m1; s.m0 += BLOCK) {
        s.rows = least(BLOCK, m1 - s.m0);
        memset(h, 0, sizeof(float) * (size_t)(BLOCK * r));
        for (s.from = 0; s.from < s.k; s.from = s.to) {
            s.to = least(s.from + NEAR / r, round_up(s.k, VW));
            down(&s, r);
        }
        if (pairs) round_h(&s, r);
        for (s.from = 0; s.from < n; s.from = s.to) {
            s.to = least(s.from + NEAR / r, round_up(n, VW));
            up(&s, r);
        }
    }
}
