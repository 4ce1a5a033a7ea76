/* The blocked matrix product: packed panels through the cache levels (Goto and van de Geijn 2008).
 *
 * Of b, a slab of steps is packed for a block of columns and stays in the outer cache. Tasks go through it
 * with GEMM_BLOCK rows each, GEMM_CHUNK steps at a time: these of a are packed for the second level, and of b
 * one panel at a time lives in the first while the tiles of all rows pass over it. The trick: the terms are
 * one sum over the steps of both, so that an adapter costs no second pass over c.
 *
 * For one large product all threads pack b and take tasks as they are free; small products are divided
 * beforehand. Each element is summed in the same order either way. Where the arithmetic is faster than
 * memory, it is a that stays packed, and each panel of b is packed while the one before it is multiplied. */
#include "backend/cpu/simd/gemm.h"
#include "backend/cpu/simd/tasks.h"

#define THIN   (3 * MR) /* up to so many rows, b is read in place if its rows are contiguous f32 */
#define PANELS 4        /* packed by one task */

/* ---- tilings ---- */

static int64_t f32_words(const tpi_term *term) {
    return term->k;
}
static void f32_pack_a(const tpi_term *term, int64_t i, int64_t w, int64_t rows, int64_t words, float *out,
                       int64_t stride) {
    TPI_SIMD(pack_a)(&term->a, i, w, rows, words, out, stride);
}
static void f32_pack_b(const tpi_term *term, int64_t w, int64_t j, int64_t words, int64_t n, float *out,
                       int64_t stride) {
    TPI_SIMD(pack_b)(&term->b, w, j, words, n, out, stride);
}

static const tpi_tiling f32_tiling = {
    .rows = MR,
    .columns = NR,
    .block = GEMM_BLOCK,
    .chunk = GEMM_CHUNK,
    .alone = GEMM_ALONE,
    .together = GEMM_TOGETHER,
    .unit = 1,
    .words = f32_words,
    .pack_a = f32_pack_a,
    .pack_b = f32_pack_b,
    .panel = GEMM_PANEL,
};

static const tpi_tiling *const tilings[] = {
    &f32_tiling,
#if BF16_PRODUCTS
    &TPI_SIMD(bf16_tiling),
#endif
};
#define TILINGS (int)(sizeof tilings / sizeof *tilings)

const tpi_tiling *TPI_SIMD(tiling_of)(const tpi_gemm *g) {
    return tilings[tpi_term_is_bf16(g->term) ? TILINGS - 1 : 0];
}

static int64_t words_of(const tpi_tiling *t, const tpi_gemm *g) {
    int64_t words = 0;
    for (int i = 0; i < g->terms; i++) words += t->words(&g->term[i]);
    return words;
}

/* ---- sizes ---- */

/* The size of n's equal pieces, whole units of at most `limit`. */
static int64_t even(int64_t n, int64_t limit, int64_t unit) {
    int64_t pieces = most(1, ceil_div(n, limit));
    return most(unit, round_up(ceil_div(n, pieces), unit));
}

static tpi_block_sizes fitting(const tpi_tiling *t, tpi_block_sizes s, int64_t m, int64_t n, int64_t words) {
    return (tpi_block_sizes){even(m, s.rows, t->rows), even(n, s.columns, t->columns),
                             even(words, s.depth, 16)};
}

/* Floats of scratch: of a for each thread, then b, then the sums. */
static int64_t left_floats(const tpi_tiling *t, tpi_block_sizes s) {
    int64_t depth = t->resident ? s.depth : least(t->chunk, s.depth);
    return round_up(least(t->block, s.rows) * depth, 16);
}
static int64_t right_floats(const tpi_tiling *t, tpi_block_sizes s) {
    return t->resident ? 2 * t->columns * s.depth : s.columns * s.depth;
}
static int64_t space_of(const tpi_tiling *t, tpi_block_sizes s, int64_t threads) {
    return threads * left_floats(t, s) + right_floats(t, s) + s.rows * s.columns;
}

/* Enough for every product of up to this shape: what fits it may be larger than what fits a larger one. */
static int64_t most_space(const tpi_tiling *t, tpi_block_sizes s, int64_t m, int64_t n, int64_t k,
                          int64_t threads) {
    const tpi_matrix f32 = {.dtype = TP_F32};
    const tpi_term term = {f32, f32, k};
    int64_t words = t->words(&term) + t->unit; /* two terms are padded twice */
    s.rows = least(round_up(s.rows, t->rows), round_up(m, t->rows));
    s.columns = least(round_up(s.columns, t->columns), round_up(n, t->columns));
    s.depth = least(s.depth, round_up(words, 16));
    return space_of(t, s, threads);
}

/* ---- one slab ---- */

/* Steps [p, p + depth) of the part of c between (m0, n0) and (m1, n1). */
typedef struct slab {
    const tpi_gemm *g;
    const tpi_tiling *tiling;
    int64_t m0, m1, n0, n1, p, depth, chunk;
    bool first, last, direct; /* direct: the sums are kept in c */
    float *a, *b, *sums;      /* packed; sums of (m0, n0) on, rows `ld` apart, */
    int64_t spread;           /* columns 1 apart; or 0: a panel's sums in the place of the last one's */
    int64_t left, ld;         /* left: floats of a thread's a */
    int64_t in_place;         /* so many of the first columns, whole panels, are read where they are */
    int64_t rows, columns;    /* of a task, */
    int64_t across;           /* and so many tasks side by side */
} slab;

/* Packs the words [p, p + k) of a's rows or b's columns: the terms' words stand one after the other. */
static void pack(const slab *s, bool right, int64_t p, int64_t k, int64_t line, int64_t lines, float *out) {
    const tpi_tiling *t = s->tiling;
    const tpi_term *term = s->g->term;
    for (int64_t start = 0, end; term < s->g->term + s->g->terms; start = end, term++) {
        end = start + t->words(term);
        int64_t from = most(p, start), to = least(p + k, end);
        if (from >= to) continue;
        if (right)
            t->pack_b(term, from - start, line, to - from, lines, out + (from - p) * t->columns,
                      t->columns * k);
        else
            t->pack_a(term, line, from - start, lines, to - from, out + (from - p) * t->rows, t->rows * k);
    }
}

/* Of a chunk, panel stands behind panel. */
static int64_t packed_columns(const slab *s) {
    return round_up(s->n1 - s->n0 - s->in_place, s->tiling->columns);
}

static void pack_panels(const void *arg, int64_t i, int thread) {
    const slab *s = arg;
    int64_t width = PANELS * s->tiling->columns, j = i * width, from = s->n0 + s->in_place + j;
    int64_t n = least(width, s->n1 - from);
    (void)thread;
    for (int64_t p = 0; p < s->depth; p += s->chunk) {
        int64_t k = least(s->chunk, s->depth - p);
        pack(s, true, s->p + p, k, from, n, s->b + p * packed_columns(s) + j * k);
    }
}

/* Steps [p, p + k) of the slab: rows [i, i1), packed in a, by a panel of b at column j. */
static void pass(const slab *s, int64_t i, int64_t i1, int64_t j, int64_t p, int64_t k, const float *a,
                 const float *b, int64_t b_step, tpi_soon *soon) {
    int64_t n = least(s->tiling->columns, s->n1 - j);
    float *out = s->sums + (i - s->m0) * s->ld + (j - s->n0) * s->spread;
    bool accumulate = p > 0 || !s->first || s->g->add, end = s->last && p + k >= s->depth;
    s->tiling->panel(i1 - i, n, k, a, b, b_step, soon, out, s->ld, accumulate);
    if (end && (!s->direct || s->g->bias || s->g->activation))
        TPI_SIMD(gemm_finish)(s->g, i, j, i1 - i, n, out, s->ld);
}

/* The same by what is packed of the slab, or read in place. */
static void pass_packed(const slab *s, int64_t i, int64_t i1, int64_t j, int64_t p, int64_t k,
                        const float *a) {
    int64_t width = s->tiling->columns, column = j - s->n0;
    if (column < s->in_place) {
        const tpi_matrix *b = &s->g->term[0].b;
        pass(s, i, i1, j, p, k, a, tpi_matrix_at(b, s->p + p, j), b->rs, NULL);
    } else {
        const float *b = s->b + p * packed_columns(s) + (column - s->in_place) * k;
        tpi_soon next = {.at = (const char *)(b + width * k),
                         .stride = LINE_BYTES,
                         .lines = width * k * (int64_t)sizeof *b / LINE_BYTES};
        pass(s, i, i1, j, p, k, a, b, width, &next);
    }
}

static void pass_block(const void *arg, int64_t index, int thread) {
    const slab *s = arg;
    float *a = s->a + thread * s->left;
    int64_t i = s->m0 + index / s->across * s->rows, i1 = least(s->m1, i + s->rows);
    int64_t j = s->n0 + index % s->across * s->columns, j1 = least(s->n1, j + s->columns);
    int64_t p = 0;
    do {
        int64_t k = least(s->chunk, s->depth - p);
        pack(s, false, s->p + p, k, i, i1 - i, a);
        for (int64_t at = j; at < j1; at += s->tiling->columns) pass_packed(s, i, i1, at, p, k, a);
        p += s->chunk;
    } while (p < s->depth);
}

/* Tasks of whole tiles, as many as keep all threads busy. */
static void divide_slab(slab *s, int64_t threads) {
    const tpi_tiling *t = s->tiling;
    int64_t m = s->m1 - s->m0, n = s->n1 - s->n0, down = ceil_div(m, t->block);
    if (m >= threads * 8 * t->rows) down = round_up(down, threads);
    s->rows = even(ceil_div(m, down), t->block, t->rows);
    int64_t wanted = threads > 1 ? ceil_div(4 * threads, down) : 1;
    s->columns = even(ceil_div(n, least(wanted, most(1, n / (8 * t->columns)))), n, t->columns);
    s->across = ceil_div(n, s->columns);
}

static void run_slab(tpi_threads *threads, slab *s) {
    run_tasks(threads, ceil_div(s->n1 - s->n0 - s->in_place, PANELS * s->tiling->columns), pack_panels, s);
    divide_slab(s, threads ? tpi_threads_parts(threads) : 1);
    run_tasks(threads, ceil_div(s->m1 - s->m0, s->rows) * s->across, pass_block, s);
}

/* ---- one slab, of a resident a ---- */

/* The panel of b at column j, and where it is packed. */
typedef struct coming {
    const slab *s;
    int64_t j;
    float *b;
} coming;

/* So many words of all its columns. */
static void pack_piece(const void *job, int64_t piece) {
    const coming *c = job;
    const slab *s = c->s;
    int64_t unit = s->tiling->unit, width = s->tiling->columns, p = piece * unit;
    pack(s, true, s->p + p, unit, c->j, least(width, s->n1 - c->j), c->b + p * width);
}

/* The trick: the next panel of b is packed while this one is multiplied, between the steps of the tiles,
 * which leave the processor's other units idle. */
static void run_resident(const slab *s) {
    int64_t width = s->tiling->columns, k = s->depth, pieces = k / s->tiling->unit;
    coming next = {s, s->n0, s->b};
    tpi_soon soon = {.pack = pack_piece, .job = &next, .pieces = pieces};
    pack(s, false, s->p, k, s->m0, s->m1 - s->m0, s->a);
    tpi_soon_end(&soon);
    for (int64_t j = s->n0; j < s->n1; j += width) {
        const float *b = next.b;
        next.j = j + width, next.b = b == s->b ? s->b + width * k : s->b;
        soon.done = 0, soon.pieces = next.j < s->n1 ? pieces : 0;
        pass(s, s->m0, s->m1, j, 0, k, s->a, b, width, &soon);
        tpi_soon_end(&soon);
    }
}

/* ---- all of them ---- */

/* How many of the first columns of b are read where they are. */
static int64_t columns_in_place(const tpi_gemm *g, int64_t rows, int64_t columns) {
    const tpi_matrix *b = &g->term[0].b;
    bool so = rows <= THIN && g->terms == 1 && b->dtype == TP_F32 && b->cs == 1 && b->rs > NR;
    return so ? columns / NR * NR : 0;
}

/* Rows [m0, m1) by columns [n0, n1), in blocks of at most these sizes; on all threads, or in this one if
 * there are none. */
static void multiply(tpi_threads *threads, const tpi_gemm *g, const tpi_tiling *tiling, int64_t m0,
                     int64_t m1, int64_t n0, int64_t n1, float *scratch) {
    int64_t k = words_of(tiling, g);
    tpi_block_sizes size = fitting(tiling, threads ? tiling->together : tiling->alone, g->m, g->n, k);
    slab s = {.g = g, .tiling = tiling, .direct = g->c_dtype == TP_F32 && g->cs == 1, .a = scratch};
    bool resident = tiling->resident && !threads;
    bool kept = !resident || k > size.depth; /* sums of all columns, for a later task or slab */
    s.left = left_floats(tiling, size);
    s.b = s.a + s.left * (threads ? tpi_threads_parts(threads) : 1);
    s.spread = s.direct || kept;
    s.ld = s.direct ? g->rs : kept ? size.columns : tiling->columns;
    int64_t rows = s.direct && !resident ? m1 - m0 : size.rows, columns = kept ? size.columns : n1 - n0;
    for (s.n0 = n0; s.n0 < n1; s.n0 = s.n1) {
        s.n1 = least(s.n0 + columns, n1);
        s.in_place = columns_in_place(g, m1 - m0, s.n1 - s.n0);
        for (s.m0 = m0; s.m0 < m1; s.m0 = s.m1) {
            s.m1 = least(s.m0 + rows, m1);
            s.sums = s.direct ? (float *)g->c + s.m0 * g->rs + s.n0 : s.b + right_floats(tiling, size);
            s.p = 0;
            do { /* an empty sum is a slab too */
                s.depth = least(size.depth, k - s.p), s.chunk = even(s.depth, tiling->chunk, 16);
                s.first = s.p == 0, s.last = s.p + s.depth >= k;
                if (resident)
                    run_resident(&s);
                else
                    run_slab(threads, &s);
                s.p += s.depth;
            } while (s.p < k);
        }
    }
}

/* x with its rows and columns exchanged: cᵀ = bᵀ·aᵀ. */
static tpi_gemm transposed(const tpi_gemm *g) {
    tpi_gemm t = *g;
    t.m = g->n, t.n = g->m, t.rs = g->cs, t.cs = g->rs;
    for (int i = 0; i < g->terms; i++) {
        t.term[i].a = tpi_matrix_transposed(g->term[i].b);
        t.term[i].b = tpi_matrix_transposed(g->term[i].a);
    }
    return t;
}

void TPI_SIMD(gemm_block)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch) {
    if (m0 >= m1 || n0 >= n1 || TPI_SIMD(gemm_skinny)(g, m0, m1, n0, n1, scratch)) return;
    tpi_gemm turned;
    bool tall = g->n <= THIN && g->m > g->n && g->term[0].a.rs == 1 && g->term[0].a.cs > 1 && !g->bias &&
                !g->activation && !g->add;
    if (tall) { /* a's columns are contiguous: read it as the wide operand, in place */
        turned = transposed(g), g = &turned;
        int64_t a = m0, b = m1;
        m0 = n0, m1 = n1, n0 = a, n1 = b;
    }
    multiply(NULL, g, TPI_SIMD(tiling_of)(g), m0, m1, n0, n1, scratch);
}

size_t TPI_SIMD(gemm_scratch)(int64_t m, int64_t n, int64_t k) {
    int64_t floats = 0;
    for (int i = 0; i < TILINGS; i++) {
        floats = most(floats, most_space(tilings[i], tilings[i]->alone, m, n, k, 1));
        floats = most(floats, most_space(tilings[i], tilings[i]->alone, n, m, k, 1));
    }
    size_t blocked = sizeof(float) * (size_t)round_up(floats, 16); /* whole cache lines */
    size_t skinny = TPI_SIMD(gemm_skinny_scratch)(m, n, k);
    return skinny > blocked ? skinny : blocked;
}

void TPI_SIMD(gemm_together)(tpi_threads *threads, const tpi_gemm *g, float *scratch) {
    multiply(threads, g, TPI_SIMD(tiling_of)(g), 0, g->m, 0, g->n, scratch);
}

size_t TPI_SIMD(gemm_together_scratch)(int64_t m, int64_t n, int64_t k, int threads) {
    int64_t floats = 0;
    for (int i = 0; i < TILINGS; i++)
        floats = most(floats, most_space(tilings[i], tilings[i]->together, m, n, k, threads));
    return sizeof(float) * (size_t)floats;
}
