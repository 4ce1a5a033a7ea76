/* Packing of bf16 products: panels of words, each of them two steps' bf16, the earlier one in its lower half.
 *
 * The trick: where an operand's steps are neighbours in memory, they lie there as words, and only whole words
 * move. An f32 operand, of an adapter's term, is the sum of a high and a low bf16; its steps come again for
 * the low part, a·b ≈ ah·bh + ah·bl + al·bh, which is exact to 16 bits. */
#include "backend/cpu/simd/gemm.h"

#if BF16_PRODUCTS

#define ROWS    BF16_ROWS
#define COLUMNS BF16_COLUMNS
#define UNIT    BF16_UNIT
#define TILE    (TILE_ROWS * TILE_WORDS)
#define DEPTH   512 /* words whose sums stay in tiles */
#define SOME    16  /* words of a panel whose steps are brought together first */

/* An operand by its lines, rows of a or columns of b, and how it takes part in each round of the term's
 * steps. */
typedef struct side {
    const tpi_matrix *x;
    int64_t along, across;        /* elements from step to step, from line to line */
    int64_t k, rounds, low_round; /* in which round it gives its low part; or -1 */
} side;

static int64_t rounds_of(const tpi_term *term) {
    return 1 + (term->a.dtype != TP_BF16) + (term->b.dtype != TP_BF16);
}
static side left_side(const tpi_term *t) {
    int64_t rounds = rounds_of(t);
    return (side){&t->a, t->a.cs, t->a.rs, t->k, rounds, t->a.dtype == TP_BF16 ? -1 : rounds - 1};
}
static side right_side(const tpi_term *t) {
    return (side){&t->b, t->b.rs, t->b.cs, t->k, rounds_of(t), t->b.dtype == TP_BF16 ? -1 : 1};
}

static int64_t words_of(const tpi_term *term) {
    return round_up(ceil_div(rounds_of(term) * term->k, 2), UNIT);
}

static const void *element(const side *s, int64_t line, int64_t step) {
    return (const char *)s->x->data + (line * s->across + step * s->along) * dtype_size(s->x->dtype);
}

/* Steps of `n` contiguous bf16, `stride` apart, as words: those of 2w and 2w + 1 in out[w·width + j], zeros
 * behind n and behind the steps. A store that is too wide is repaired by the next one. */
INLINE void join(const uint16_t *x, int64_t stride, int64_t steps, int64_t n, int64_t words, int64_t width,
                 float *out) {
    for (int64_t w = 0; w < words; w++, out += width) {
        int64_t low = 2 * w < steps ? n : 0, high = 2 * w + 1 < steps ? n : 0;
        const uint16_t *line = x + 2 * w * stride;
        for (int64_t j = 0; j < width; j += VW) {
            __builtin_prefetch(line + width + j, 0, 2);
            __builtin_prefetch(line + stride + width + j, 0, 2);
            vf a = v_get(line, TP_BF16, j, least(VW, most(0, low - j)));
            vf b = v_get(line + (high ? stride : 0), TP_BF16, j, least(VW, most(0, high - j)));
            if (j + VW <= width || w + 1 < words)
                v_store(out + j, v_pair(a, b));
            else
                v_store_n(out + j, v_pair(a, b), width - j);
        }
    }
}

/* The same of any operand: its steps, rounded to bf16 or what rounding left, are brought together first. */
static void join_some(const side *s, int64_t line, int64_t w, int64_t lines, int64_t words, int64_t width,
                      float *out) {
    float values[2 * SOME * COLUMNS + VW];
    uint16_t halves[2 * SOME * COLUMNS + VW];
    int64_t from = 2 * w, end = least(2 * (w + words), s->rounds * s->k);
    for (int64_t at = from; at < end;) {
        int64_t round = at / s->k, step = at % s->k, run = least(s->k - step, end - at);
        float *x = values + (at - from) * width;
        TPI_SIMD(pack_panel)(element(s, line, step), s->x->dtype, s->along, s->across, lines, run, width, x);
        for (int64_t i = 0; round == s->low_round && i < run * width; i += VW) {
            uint16_t high[VW];
            v_store_bf16(high, v_load(x + i));
            v_store(x + i, v_load(x + i) - v_load_bf16(high));
        }
        at += run;
    }
    for (int64_t i = 0; i < (end - from) * width; i += VW) v_store_bf16(halves + i, v_load(values + i));
    join(halves, width, most(0, end - from), width, words, width, out);
}

/* Words [w, w + words) of `lines` ≤ width lines as [words][width]. */
static void pack_lines(const side *s, int64_t line, int64_t w, int64_t lines, int64_t words, int64_t width,
                       float *out) {
    bool plain = s->rounds == 1;
    int64_t steps = s->k - 2 * w, whole = plain && s->along == 1 ? least(words, most(0, steps / 2)) : 0;
    if (plain && s->across == 1) {
        join(element(s, line, 2 * w), s->along, steps, lines, words, width, out);
        return;
    }
    if (whole) TPI_SIMD(pack_words)(element(s, line, 2 * w), 2 * s->across, lines, whole, width, out);
    for (int64_t at = whole, some; at < words; at += some) {
        some = least(SOME, words - at);
        join_some(s, line, w + at, lines, some, width, out + at * width);
    }
}

#if defined(BF16_TILES)

/* Whether a tile's words of `lines` lines from w on are all there, whole. */
static bool whole_tile(const side *s, int64_t w, int64_t lines) {
    return s->rounds == 1 && lines == TILE_ROWS && s->k >= 2 * (w + TILE_WORDS);
}

/* Rows of words, `stride` bytes apart, as a tile's columns. Here and below the same tile of the next panel is
 * fetched: it may come from memory. */
static void turn_tile(const char *rows, int64_t stride, float *out) {
    for (int64_t i = 0; i < TILE_ROWS; i++) __builtin_prefetch(rows + (COLUMNS + i) * stride, 0, 2);
    for (int64_t i = 0; i < TILE_ROWS; i += VW)
        for (int64_t j = 0; j < TILE_WORDS; j += VW) {
            vf r[VW];
            v_load_transposed(rows + i * stride + j * (int64_t)sizeof(float), stride, r);
            UNROLL for (int k = 0; k < VW; k++) v_store(out + (j + k) * TILE_WORDS + i, r[k]);
        }
}

/* Steps that are `stride` apart, of a tile's columns side by side, as its words. */
static void join_tile(const uint16_t *steps, int64_t stride, float *out) {
    for (int64_t w = 0; w < TILE_ROWS; w++, steps += 2 * stride, out += TILE_WORDS) {
        __builtin_prefetch(steps + COLUMNS, 0, 2);
        __builtin_prefetch(steps + stride + COLUMNS, 0, 2);
        for (int64_t j = 0; j < TILE_WORDS; j += VW)
            v_store(out + j, v_pair(v_load_bf16(steps + j), v_load_bf16(steps + stride + j)));
    }
}

static void pack_tile(const side *s, int64_t line, int64_t w, int64_t lines, float *out) {
    int64_t size = dtype_size(s->x->dtype);
    if (whole_tile(s, w, lines) && s->along == 1)
        turn_tile(element(s, line, 2 * w), s->across * size, out);
    else if (whole_tile(s, w, lines) && s->across == 1)
        join_tile(element(s, line, 2 * w), s->along, out);
    else
        pack_lines(s, line, w, lines, TILE_WORDS, TILE_WORDS, out);
}

/* Panels are [words / 16][2][16][16]: two tiles side by side, each of them contiguous. */
static void pack_right(const tpi_term *term, int64_t w, int64_t j, int64_t words, int64_t n, float *out,
                       int64_t stride) {
    const side s = right_side(term);
    for (int64_t at = 0; at < n; at += COLUMNS, out += stride)
        for (int64_t t = 0; t < 2 * words / TILE_WORDS; t++) {
            int64_t from = at + t % 2 * TILE_WORDS, v = t / 2 * TILE_WORDS;
            pack_tile(&s, j + from, w + v, most(0, least(TILE_WORDS, n - from)), out + t * TILE);
        }
}

/* The words of one line whose steps are neighbours, in that line of the panel's tiles. */
static void copy_line(const float *line, int64_t words, float *out) {
    for (int64_t v = 0; v < words; v += TILE_WORDS)
        for (int64_t j = 0; j < TILE_WORDS; j += VW) v_store(out + v * ROWS + j, v_load(line + v + j));
}

/* Panels are [words / 16][ROWS][16]: a tile's rows one behind the other. */
static void pack_left(const tpi_term *term, int64_t i, int64_t w, int64_t rows, int64_t words, float *out,
                      int64_t stride) {
    const side s = left_side(term);
    int64_t plain = s.rounds == 1 && s.along == 1 ? least(words, most(0, s.k / 2 - w) / UNIT * UNIT) : 0;
    for (int64_t at = 0; at < rows; at += ROWS, out += stride) {
        int64_t lines = least(ROWS, rows - at), from = lines == ROWS ? plain : 0;
        for (int64_t line = 0; line < ROWS && from; line++)
            copy_line(element(&s, i + at + line, 2 * w), from, out + line * TILE_WORDS);
        for (int64_t v = from; v < words; v += TILE_WORDS) {
            float turned[TILE_WORDS * ROWS];
            pack_lines(&s, i + at, w + v, lines, TILE_WORDS, ROWS, turned);
            TPI_SIMD(pack_words)
            (turned, sizeof(float) * ROWS, TILE_WORDS, ROWS, TILE_WORDS, out + v * ROWS);
        }
    }
}

#else

static void pack_right(const tpi_term *term, int64_t w, int64_t j, int64_t words, int64_t n, float *out,
                       int64_t stride) {
    const side s = right_side(term);
    for (int64_t at = 0; at < n; at += COLUMNS, out += stride)
        pack_lines(&s, j + at, w, least(COLUMNS, n - at), words, COLUMNS, out);
}

static void pack_left(const tpi_term *term, int64_t i, int64_t w, int64_t rows, int64_t words, float *out,
                      int64_t stride) {
    const side s = left_side(term);
    for (int64_t at = 0; at < rows; at += ROWS, out += stride)
        pack_lines(&s, i + at, w, least(ROWS, rows - at), words, ROWS, out);
}

#endif

/* Tiles are so fast that fetching what another thread has packed takes as long as packing it. */
const tpi_tiling TPI_SIMD(bf16_tiling) = {
    .rows = ROWS,
    .columns = COLUMNS,
#if defined(BF16_TILES)
    .chunk = DEPTH,
    .block = 512,
    .alone = {512, 512, DEPTH},
    .resident = true,
#else
    .chunk = GEMM_CHUNK,
    .block = GEMM_BLOCK,
    .alone = GEMM_ALONE,
    .together = GEMM_TOGETHER,
#endif
    .unit = UNIT,
    .words = words_of,
    .pack_a = pack_left,
    .pack_b = pack_right,
    .panel = TPI_SIMD(bf16_panel),
};

#endif
