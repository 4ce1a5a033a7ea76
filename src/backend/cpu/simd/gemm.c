/* The blocked matrix product: packed panels through the cache levels (Goto and van de Geijn 2008).
 *
 * Of b, a slab of steps is packed for a block of columns and stays in the outer cache. Tasks go through it
 * with GEMM_BLOCK rows each, GEMM_CHUNK steps at a time: these of a are packed for the second level, and of b
 * one panel at a time lives in the first while the tiles of all rows pass over it. The trick: the terms are
 * one sum over the steps of both, so that an adapter costs no second pass over c.
 *
 * For one large product all threads pack b and take tasks as they are free; small products are divided
 * beforehand. Each element is summed in the same order either way. */
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
    .panel = TPI_SIMD(gemm_panel),
};

static const tpi_tiling *const tilings[] = {
    &f32_tiling,
#if BF16_PRODUCTS
    &TPI_SIMD(bf16_tiling),
#endif
};
#define TILINGS (int)(sizeof tilings / sizeof *tilings)

static const tpi_tiling *tiling_of(const tpi_gemm *g) {
    const tpi_term *first = g->term;
    return tilings[first->a.dtype == TP_BF16 && first->b.dtype == TP_BF16 ? TILINGS - 1 : 0];
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
    return round_up(least(t->block, s.rows) * least(t->chunk, s.depth), 16);
}
static int64_t space_of(const tpi_tiling *t, tpi_block_sizes s, int64_t threads) {
    return threads * left_floats(t, s) + s.columns * s.depth + s.rows * s.columns;
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
    float *a, *b, *sums;      /* packed; sums of (m0, n0) on, rows `ld` apart */
    int64_t left, ld;         /* left: floats of a thread's a */
    int64_t in_place;         /* so many of the first columns, whole panels, are read where they are */
    int64_t rows, columns;    /* of a task, */
    int64_t across;           /* and so many tasks side by side */
} slab;

/* Packs the words [p, p + k) of rows of a: the terms' words stand one after the other. */
static void pack_left(const slab *s, int64_t p, int64_t k, int64_t i, int64_t rows, float *out) {
    const tpi_tiling *tiling = s->tiling;
    const tpi_term *term = s->g->term;
    for (int64_t start = 0, end; term < s->g->term + s->g->terms; start = end, term++) {
        end = start + tiling->words(term);
        int64_t from = most(p, start), to = least(p + k, end);
        if (from >= to) continue;
        float *at = out + (from - p) * tiling->rows;
        tiling->pack_a(term, i, from - start, rows, to - from, at, tiling->rows * k);
    }
}

static void pack_right(const slab *s, int64_t p, int64_t k, int64_t j, int64_t n, float *out) {
    const tpi_tiling *tiling = s->tiling;
    const tpi_term *term = s->g->term;
    for (int64_t start = 0, end; term < s->g->term + s->g->terms; start = end, term++) {
        end = start + tiling->words(term);
        int64_t from = most(p, start), to = least(p + k, end);
        if (from >= to) continue;
        float *at = out + (from - p) * tiling->columns;
        tiling->pack_b(term, from - start, j, to - from, n, at, tiling->columns * k);
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
        pack_right(s, s->p + p, k, from, n, s->b + p * packed_columns(s) + j * k);
    }
}

/* Steps [p, p + k) of the slab: rows [i, i1), packed in a, by one panel of b at column j. */
static void pass(const slab *s, int64_t i, int64_t i1, int64_t j, int64_t p, int64_t k, const float *a) {
    int64_t width = s->tiling->columns, n = least(width, s->n1 - j), column = j - s->n0, b_step = width;
    const float *b = s->b + p * packed_columns(s) + (column - s->in_place) * k, *next = b + width * k;
    float *out = s->sums + (i - s->m0) * s->ld + column;
    bool accumulate = p > 0 || !s->first || s->g->add, end = s->last && p + k >= s->depth;
    if (column < s->in_place) {
        b_step = s->g->term[0].b.rs, next = NULL;
        b = tpi_matrix_at(&s->g->term[0].b, s->p + p, j);
    }
    s->tiling->panel(i1 - i, n, k, a, b, b_step, next, out, s->ld, accumulate);
    if (end && (!s->direct || s->g->bias || s->g->activation))
        TPI_SIMD(gemm_finish)(s->g, i, j, i1 - i, n, out, s->ld);
}

static void pass_block(const void *arg, int64_t index, int thread) {
    const slab *s = arg;
    float *a = s->a + thread * s->left;
    int64_t i = s->m0 + index / s->across * s->rows, i1 = least(s->m1, i + s->rows);
    int64_t j = s->n0 + index % s->across * s->columns, j1 = least(s->n1, j + s->columns);
    int64_t p = 0;
    do {
        int64_t k = least(s->chunk, s->depth - p);
        pack_left(s, s->p + p, k, i, i1 - i, a);
        for (int64_t at = j; at < j1; at += s->tiling->columns) pass(s, i, i1, at, p, k, a);
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
    divide_slab(s, threads ? tpi_threads_count(threads) : 1);
    run_tasks(threads, ceil_div(s->m1 - s->m0, s->rows) * s->across, pass_block, s);
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
    s.left = left_floats(tiling, size);
    s.b = s.a + s.left * (threads ? tpi_threads_count(threads) : 1);
    int64_t rows = s.direct ? m1 - m0 : size.rows;
    for (s.n0 = n0; s.n0 < n1; s.n0 = s.n1) {
        s.n1 = least(s.n0 + size.columns, n1);
        s.in_place = columns_in_place(g, m1 - m0, s.n1 - s.n0);
        for (s.m0 = m0; s.m0 < m1; s.m0 = s.m1) {
            s.m1 = least(s.m0 + rows, m1);
            s.sums = s.direct ? (float *)g->c + s.m0 * g->rs + s.n0 : s.b + size.columns * size.depth;
            s.ld = s.direct ? g->rs : size.columns;
            s.p = 0;
            do { /* an empty sum is a slab too */
                s.depth = least(size.depth, k - s.p), s.chunk = even(s.depth, tiling->chunk, 16);
                s.first = s.p == 0, s.last = s.p + s.depth >= k;
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
    multiply(NULL, g, tiling_of(g), m0, m1, n0, n1, scratch);
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

/* How the threads divide one product: `down` by `across` blocks. */
typedef struct grid {
    int64_t down, across, rows, columns;
} grid;

static grid divide(const tpi_tiling *t, int64_t m, int64_t n, int64_t parts) {
    grid best = {0};
    double least_cost = 0.0;
    for (int64_t down = 1; down <= parts; down++) {
        if (parts % down) continue;
        grid g = {down, parts / down, 0, 0};
        g.rows = round_up(ceil_div(m, down), t->rows),
        g.columns = round_up(ceil_div(n, g.across), t->columns);
        double cost = (double)g.rows * (double)g.columns + 8.0 * (double)(g.rows + g.columns);
        if (best.down && cost >= least_cost) continue;
        best = g, least_cost = cost;
    }
    return best;
}

typedef struct batch_job {
    const tpi_gemm *g;
    grid grid;
    int64_t per_piece;
    void (*describe)(const void *arg, int64_t i, tpi_gemm *g);
    const void *arg;
    char *scratch;
    size_t stride;
} batch_job;

static void run_items(void *arg, int64_t begin, int64_t end) {
    const batch_job *job = arg;
    int64_t blocks = job->grid.down * job->grid.across;
    float *scratch = (float *)(void *)(job->scratch + job->stride * (size_t)(begin / job->per_piece));
    for (int64_t item = begin; item < end; item++) {
        tpi_gemm g = *job->g;
        int64_t block = item % blocks, i = block / job->grid.across * job->grid.rows;
        int64_t j = block % job->grid.across * job->grid.columns;
        job->describe(job->arg, item / blocks, &g);
        TPI_SIMD(gemm_block)
        (&g, i, least(g.m, i + job->grid.rows), j, least(g.n, j + job->grid.columns), scratch);
    }
}

#define SERIAL 6e4 /* multiplications that are done sooner than a second thread could begin */
#define LARGE  4e6 /* that all threads share what is packed for */

static int64_t steps_of(const tpi_gemm *g) {
    return g->term[0].k + (g->terms == 2 ? g->term[1].k : 0);
}
static double work_of(const tpi_gemm *g) {
    return (double)g->m * (double)g->n * (double)steps_of(g);
}

/* Products for which packing together pays: large, not slim, and too few for each thread to have its own. */
static bool shared(const tpi_gemm *g, int64_t batch, int64_t count) {
    int64_t slim = 3 * NR;
    return tiling_of(g)->together.rows && (count == 1 || batch % count) && batch < 4 * count && g->m > slim &&
           g->n > slim && work_of(g) > LARGE;
}

void TPI_SIMD(gemm_batch)(tpi_threads *threads, const tpi_gemm *g, int64_t batch,
                          void (*describe)(const void *arg, int64_t i, tpi_gemm *g), const void *arg,
                          float *scratch) {
    int64_t count = tpi_threads_count(threads);
    if (shared(g, batch, count)) {
        for (int64_t i = 0; i < batch; i++) {
            tpi_gemm item = *g;
            describe(arg, i, &item);
            multiply(threads, &item, tiling_of(g), 0, g->m, 0, g->n, scratch);
        }
        return;
    }
    bool serial = count == 1 || (double)batch * work_of(g) < SERIAL;
    int64_t parts = serial || batch % count == 0 ? 1 : count;
    batch_job job = {g,
                     divide(tiling_of(g), g->m, g->n, parts),
                     1,
                     describe,
                     arg,
                     (char *)scratch,
                     TPI_SIMD(gemm_scratch)(g->m, g->n, steps_of(g))};
    int64_t items = batch * parts;
    job.per_piece = serial ? items : ceil_div(items, count);
    tpi_parallel_for(threads, items, job.per_piece, run_items, &job);
}

size_t TPI_SIMD(gemm_batch_scratch)(int64_t m, int64_t n, int64_t k, int threads) {
    size_t each = TPI_SIMD(gemm_scratch)(m, n, k) * (size_t)threads;
    for (int i = 0; i < TILINGS; i++) {
        size_t all = sizeof(float) * (size_t)most_space(tilings[i], tilings[i]->together, m, n, k, threads);
        if (all > each) each = all;
    }
    return each;
}
