/* Attention of a few queries, as in generation: keys are divided, not queries (flash-decoding, Dao et al.
 * 2023).
 *
 * A part of the keys, and then their values, stream past the queries of all heads once, in the order in which
 * memory has them, and leave sums of their own; the parts are joined in their order, so it does not matter
 * which thread made them. The queries of all heads that share keys are the rows of one block. */
#include "backend/cpu/simd/bf16.h"

#if !defined(BF16_TILES)
#include "backend/cpu/simd/attention.h"

#define PART    128 /* keys: of all groups they stay in the second cache */
#define TASKS   16  /* that there are at least, if there are so many groups' parts */
#define SMALL   512 /* rows that are packed, or joined, sooner than a second thread could begin */
#define WEIGHTS (BF16_PRODUCTS ? TP_BF16 : TP_F32) /* exponentials are rounded to it, their sums not */

typedef struct few {
    attention p;
    const tpi_tiling *tiling;      /* of q·kᵀ and of weights·v */
    int64_t share, rows, words, d; /* heads a group; rows of a block; words of a key, floats of a sum */
    int64_t parts, slices, slice;  /* of a sequence's keys; of its groups; groups of a slice */
    int64_t left_size, sums_size;  /* floats of a group's packed queries; of its sums, a part */
    int64_t weights, packed, thread_size; /* where a thread has weights, keys or values behind the scores */
    float *left, *sums, *buffers;
} few;

/* q [rows, size], contiguous, times the transposed keys of a group. */
static tpi_term scores_term(const attention *p, const void *q, int64_t b, int64_t g) {
    const int dtype = tpi_in_operand(p->launch->step, 0)->dtype;
    return (tpi_term){{q, p->size, 1, dtype}, tpi_matrix_transposed(head_matrix(p, 1, b, g)), p->size};
}

/* The weights [rows, n] of keys from `key` on, in the room of rows of floats, times their values. */
static tpi_term values_term(const attention *p, const void *weights, int64_t b, int64_t g, int64_t key,
                            int64_t n) {
    tpi_matrix v = head_matrix(p, 2, b, g);
    v.data = tpi_matrix_at(&v, key, 0);
    return (tpi_term){{weights, PART * (int64_t)sizeof(float) / dtype_size(WEIGHTS), 1, WEIGHTS}, v, n};
}

static few few_of(const tpi_launch *launch, int64_t keys) {
    few f = {.p = attention_of(launch), .left = tpi_scratch(launch)};
    const attention *p = &f.p;
    const tpi_gemm product = {.terms = 1, .term = {scores_term(p, NULL, 0, 0)}};
    const tpi_tiling *t = f.tiling = TPI_SIMD(tiling_of)(&product);
    f.words = t->words(product.term), f.d = round_up(p->size, t->columns);
    f.share = p->heads / p->groups, f.rows = p->queries * f.share, f.parts = ceil_div(keys, PART);
    const int64_t padded = round_up(f.rows, t->rows), groups = p->batches * p->groups;
    f.slice = ceil_div(p->groups, least(p->groups, ceil_div(TASKS, most(1, p->batches * f.parts))));
    f.slices = ceil_div(p->groups, f.slice);
    f.left_size = round_up(padded * f.words, 16), f.sums_size = round_up(f.rows * (f.d + 2), 16);
    f.weights = p->groups * f.rows * PART;
    f.packed = f.weights + round_up(padded * PART, 16);
    f.thread_size = f.packed + most(t->columns * round_up(f.words, 16), f.d * PART);
    f.sums = f.left + groups * f.left_size;
    f.buffers = f.sums + groups * f.parts * f.sums_size;
    return f;
}

ACCEPTS(attention_few_accepts) {
    return attention_forward_plain(step) && few_queries(step) && (!BF16_PRODUCTS || all_bf16(step));
}

SCRATCH(attention_few_scratch) {
    tpi_step sized;
    const tpi_launch launch = launch_nowhere(step, &sized);
    const few f = few_of(&launch, tpi_in_operand(step, 1)->shape[1]);
    const int64_t each = f.left_size + f.parts * f.sums_size;
    return (size_t)(f.p.batches * f.p.groups * each + f.thread_size * threads) * sizeof(float);
}

/* A group's sums of a part: row r is query r / share of the group's head r % share. */
static query_rows sums_of(const few *f, int64_t b, int64_t part, int64_t g) {
    float *at = f->sums + ((b * f->parts + part) * f->p.groups + g) * f->sums_size;
    return (query_rows){.b = b,
                        .h = g * f->share,
                        .rows = f->rows,
                        .d = f->d,
                        .out = at,
                        .top = at + f->rows * f->d,
                        .sum = at + f->rows * (f->d + 1)};
}

static float *left_of(const few *f, int64_t b, int64_t g) {
    return f->left + (b * f->p.groups + g) * f->left_size;
}

/* The queries of a group. */
static void pack_queries(const void *job, int64_t i, int thread) {
    const few *f = job;
    const int64_t b = i / f->p.groups, g = i % f->p.groups;
    float *rows = f->buffers + thread * f->thread_size;
    char *row = (char *)rows;
    for (int64_t r = 0; r < f->rows; r++) {
        const tpi_matrix q = head_matrix(&f->p, 0, b, g * f->share + r % f->share);
        const size_t bytes = (size_t)(f->p.size * dtype_size(q.dtype));
        memcpy(row, tpi_matrix_at(&q, r / f->share, 0), bytes);
        row += bytes;
    }
    const tpi_term term = scores_term(&f->p, rows, b, g);
    f->tiling->pack_a(&term, 0, 0, f->rows, f->words, left_of(f, b, g), f->tiling->rows * f->words);
}

/* Groups' scores of the keys first ... end-1, a panel of each at a time. */
static void score(const few *f, float *space, int64_t b, int64_t group, int64_t groups, int64_t first,
                  int64_t end) {
    const tpi_tiling *t = f->tiling;
    float *keys = space + f->packed;
    for (int64_t j = first; j < end; j += t->columns)
        for (int64_t g = group; g < groups; g++) {
            const tpi_term term = scores_term(&f->p, NULL, b, g);
            const int64_t n = least(t->columns, end - j);
            t->pack_b(&term, 0, j, f->words, n, keys, 0);
            t->panel(f->rows, n, f->words, left_of(f, b, g), keys, t->columns, NULL,
                     space + g * f->rows * PART + (j - first), PART, false);
        }
}

/* A row's scores of the keys first ... end-1 to weights, with their maximum and sum. */
static void soften_row(const attention *p, const query_rows *w, int64_t share, int64_t r, int64_t first,
                       int64_t end, float *x) {
    int64_t from, to;
    visible_keys(p, w->b, r / share, &from, &to);
    from = least(most(from, first), end) - first, to = most(least(to, end) - first, from);
    float top = -INFINITY;
    if (from < to) {
        scale_scores(p, (float)p->attr->scale, w->b, w->h + r % share, r / share, first, first + from,
                     first + to, x);
        top = row_max(x + from, to - from);
    }
    if (top == -INFINITY) to = from;
    w->top[r] = top, w->sum[r] = weigh_row(x, WEIGHTS, from, to, end - first, top);
}

/* A group's weighted values of the keys first ... end-1; those that are panels as they lie are read in place.
 */
static void add_values(const few *f, float *space, const query_rows *w, int64_t g, int64_t first,
                       int64_t end) {
    const tpi_tiling *t = f->tiling;
    const tpi_term term = values_term(&f->p, space + g * f->rows * PART, w->b, g, first, end - first);
    const int64_t words = t->words(&term), size = f->p.size;
    const bool in_place = term.b.dtype == TP_F32 && size % t->columns == 0;
    float *weights = space + f->weights, *values = space + f->packed;
    t->pack_a(&term, 0, 0, f->rows, words, weights, t->rows * words);
    if (!in_place) t->pack_b(&term, 0, 0, words, size, values, t->columns * words);
    for (int64_t i = 0; i < size; i += t->columns) {
        const float *panel = in_place ? (const float *)term.b.data + i : values + i * words;
        t->panel(f->rows, least(t->columns, size - i), words, weights, panel,
                 in_place ? term.b.rs : t->columns, NULL, w->out + i, w->d, false);
    }
}

static void part_of_keys(const void *job, int64_t i, int thread) {
    const few *f = job;
    const attention *p = &f->p;
    const int64_t group = i % f->slices * f->slice, part = i / f->slices % f->parts;
    const int64_t b = i / f->slices / f->parts, groups = least(group + f->slice, p->groups);
    float *space = f->buffers + thread * f->thread_size;
    int64_t first, end;
    visible_block(p, b, 0, p->queries, &first, &end);
    first = most(first, part * PART), end = most(first, least(end, (part + 1) * PART));
    score(f, space, b, group, groups, first, end);
    for (int64_t g = group; g < groups; g++) {
        const query_rows w = sums_of(f, b, part, g);
        for (int64_t r = 0; r < f->rows; r++)
            soften_row(p, &w, f->share, r, first, end, space + (g * f->rows + r) * PART);
        if (first < end) add_values(f, space, &w, g, first, end);
    }
}

/* Adds the sums of a row's parts up in those of the first, which holds none if its top is -∞. */
static void join_row(const few *f, const query_rows *all, int64_t r) {
    const int64_t step = f->p.groups * f->sums_size; /* from part to part */
    float *out = all->out + r * f->d, *tops = all->top + r, *sums = all->sum + r, top = -INFINITY, sum = 0.0f;
    for (int64_t part = 0; part < f->parts; part++) top = fmaxf(top, tops[part * step]);
    if (tops[0] == -INFINITY) memset(out, 0, sizeof *out * (size_t)f->d);
    for (int64_t part = 0; part < f->parts; part++) {
        const float *x = out + part * step, its = tops[part * step];
        if (its == -INFINITY) continue;
        const float by = expf(its - top);
        sum += sums[part * step] * by;
        for (int64_t i = 0; i < f->d; i += VW) {
            vf y = v_load(x + i) * v_set(by);
            if (part > 0) y += v_load(out + i);
            v_store(out + i, y);
        }
    }
    *tops = top, *sums = sum;
}

static void join_parts(const void *job, int64_t i, int thread) {
    (void)thread;
    const few *f = job;
    const query_rows all = sums_of(f, i / f->p.groups, 0, i % f->p.groups);
    for (int64_t r = 0; r < f->rows; r++) {
        query_rows row = all;
        join_row(f, &all, r);
        row.t = r / f->share, row.h += r % f->share, row.rows = 1;
        row.out += r * f->d, row.top += r, row.sum += r;
        finish_rows(&f->p, &row);
    }
}

KERNEL(attention_few) {
    const attention p = attention_of(launch);
    int64_t keys = 1;
    for (int64_t b = 0; b < p.batches; b++) keys = most(keys, last_key(&p, b));
    const few f = few_of(launch, keys);
    const int64_t groups = p.batches * p.groups, rows = groups * f.rows;
    run_tasks(rows < SMALL ? NULL : launch->threads, groups, pack_queries, &f);
    run_tasks(launch->threads, p.batches * f.parts * f.slices, part_of_keys, &f);
    run_tasks(rows * f.parts < SMALL ? NULL : launch->threads, groups, join_parts, &f);
    return TP_OK;
}

#endif
