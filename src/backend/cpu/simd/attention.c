/* Attention in blocks with a running softmax (Dao et al. 2022): scores never leave the first cache.
 *
 * Keys and values are packed once for all queries and heads that share them. The output of a block of queries
 * is a sum that is scaled down whenever a later block of keys raises a row's maximum. A few queries,
 * as in generation, are attention_few.c's. */
#include "backend/cpu/simd/attention.h"

typedef struct forward {
    attention p;
    int64_t k_size, v_size, thread_size; /* floats of a group's packed keys, values; of a thread's blocks */
    float *packed, *blocks;
} forward;

static int64_t thread_floats(const attention *p) {
    return QUERIES * (2 * round_up(p->size, NR) + 2 * KEYS + 2);
}

static forward forward_of(const tpi_launch *launch) {
    forward f = {.p = attention_of(launch), .packed = tpi_scratch(launch)};
    f.k_size = round_up(f.p.keys, NR) * f.p.size;
    f.v_size = f.p.keys * round_up(f.p.size, NR);
    f.thread_size = round_up(thread_floats(&f.p), 16);
    f.blocks = f.packed + round_up(f.p.batches * f.p.groups * (f.k_size + f.v_size), 16);
    return f;
}

ACCEPTS(attention_accepts) {
    return attention_forward_plain(step);
}

SCRATCH(attention_scratch) {
    tpi_step sized;
    const tpi_launch launch = launch_nowhere(step, &sized);
    forward f = forward_of(&launch);
    int64_t packed = round_up(f.p.batches * f.p.groups * (f.k_size + f.v_size), 16);
    return (size_t)(packed + f.thread_size * threads) * sizeof(float);
}

/* Packs NR keys and their values: task i is a panel of a group of a sequence. */
static void pack_keys(const void *job, int64_t i, int thread) {
    (void)thread;
    const forward *f = job;
    const attention *p = &f->p;
    int64_t panels = ceil_div(p->keys, NR), group = i / panels, s = i % panels * NR, b = group / p->groups;
    int64_t n = least(NR, last_key(p, b) - s);
    if (n <= 0) return;
    float *k = f->packed + group * (f->k_size + f->v_size), *v = k + f->k_size;
    tpi_matrix keys = tpi_matrix_transposed(head_matrix(p, 1, b, group % p->groups));
    tpi_matrix values = head_matrix(p, 2, b, group % p->groups);
    TPI_SIMD(pack_b)(&keys, 0, s, p->size, n, k + s * p->size, 0);
    TPI_SIMD(pack_b)(&values, s, 0, n, p->size, v + s * NR, p->keys * NR);
}

/* The keys [base, base + n) of one row: scores to exponentials, the row's maximum and sum brought forward. */
static void soften_row(const attention *p, const query_rows *w, int64_t r, int64_t base, int64_t n) {
    float *scores = w->scores + r * KEYS;
    int64_t first, end;
    visible_keys(p, w->b, w->t + r, &first, &end);
    first = most(first, base), end = least(end, base + n);
    float top = w->top[r];
    if (first < end) {
        scale_scores(p, 1.0f, w->b, w->h, w->t + r, base, first, end, scores);
        top = fmaxf(top, row_max(scores + (first - base), end - first));
    }
    if (first >= end || top == -INFINITY) {
        memset(scores, 0, sizeof(float) * (size_t)n);
        return;
    }
    const float sum = weigh_row(scores, TP_F32, first - base, end - base, n, top);
    const float kept = top == w->top[r] ? 1.0f : expf(w->top[r] - top);
    w->sum[r] = w->sum[r] * kept + sum, w->top[r] = top;
    if (kept == 1.0f) return;
    for (int64_t i = 0; i < w->d; i += VW)
        v_store(w->out + r * w->d + i, v_load(w->out + r * w->d + i) * v_set(kept));
}

/* Packs the block's queries, scaled: the scores of all keys need not be then. */
static void pack_queries(const attention *p, const query_rows *w) {
    tpi_matrix q = head_matrix(p, 0, w->b, w->h);
    const vf scale = v_set((float)p->attr->scale);
    const int64_t floats = round_up(w->rows, MR) * p->size; /* a buffer of QUERIES · d: whole vectors */
    TPI_SIMD(pack_a)(&q, w->t, 0, w->rows, p->size, w->q, MR * p->size);
    for (int64_t i = 0; i < floats; i += VW) v_store(w->q + i, v_load(w->q + i) * scale);
}

/* Scores of the keys [base, base + n), a panel at a time and without the tiles of rows that see none of it.
 */
static void score(const attention *p, const query_rows *w, const float *keys, int64_t base, int64_t n) {
    for (int64_t j = 0; j < n; j += NR) {
        int64_t r = least(first_query(p, w->b, w->t, base + j), w->rows) / MR * MR;
        GEMM_PANEL(w->rows - r, least(NR, n - j), p->size, w->q + r * p->size, keys + (base + j) * p->size,
                   NR, NULL, w->scores + r * KEYS + j, KEYS, false);
    }
}

/* Adds the values of the keys [base, base + n): to each tile of rows those that its last row sees. */
static void add_values(const attention *p, const query_rows *w, const float *values, int64_t base,
                       int64_t n) {
    int64_t r = 0;
    for (; first_query(p, w->b, w->t, base + n - 1) >= r + MR && r < w->rows; r += MR) {
        int64_t k = n;
        while (k > 0 && first_query(p, w->b, w->t, base + k - 1) >= r + MR) k--;
        panels_product(least(MR, w->rows - r), p->size, k, w->weights + r * n, values + base * NR,
                       p->keys * NR, w->out + r * w->d, w->d, true);
    }
    if (r < w->rows)
        panels_product(w->rows - r, p->size, n, w->weights + r * n, values + base * NR, p->keys * NR,
                       w->out + r * w->d, w->d, true);
}

static void query_block(const void *job, int64_t i, int thread) {
    const forward *f = job;
    const attention *p = &f->p;
    int64_t lines = p->batches * p->heads, blocks = ceil_div(p->queries, QUERIES), line = i % lines;
    int64_t d = round_up(p->size, NR), first, end;
    float *space = f->blocks + thread * f->thread_size;
    query_rows w = {.b = line / p->heads, .h = line % p->heads, .d = d};
    w.t = (blocks - 1 - i / lines) * QUERIES; /* the longest rows first */
    w.rows = least(QUERIES, p->queries - w.t);
    w.q = space, w.out = w.q + QUERIES * d, w.scores = w.out + QUERIES * d,
    w.weights = w.scores + QUERIES * KEYS;
    w.top = w.weights + QUERIES * KEYS, w.sum = w.top + QUERIES;
    int64_t group = w.b * p->groups + w.h / (p->heads / p->groups);
    const float *keys = f->packed + group * (f->k_size + f->v_size), *values = keys + f->k_size;
    tpi_matrix scores = {w.scores, KEYS, 1, TP_F32};
    pack_queries(p, &w);
    memset(w.out, 0, sizeof(float) * (size_t)(QUERIES * d));
    for (int64_t r = 0; r < w.rows; r++) w.top[r] = -INFINITY, w.sum[r] = 0.0f;
    visible_block(p, w.b, w.t, w.rows, &first, &end);
    for (int64_t base = first / KEYS * KEYS; base < end; base += KEYS) {
        int64_t n = least(KEYS, end - base);
        score(p, &w, keys, base, n);
        for (int64_t r = 0; r < w.rows; r++) soften_row(p, &w, r, base, n);
        TPI_SIMD(pack_a)(&scores, 0, 0, w.rows, n, w.weights, MR * n);
        add_values(p, &w, values, base, n);
    }
    finish_rows(p, &w);
}

KERNEL(attention) {
    forward f = forward_of(launch);
    const attention *p = &f.p;
    run_tasks(launch->threads, p->batches * p->groups * ceil_div(p->keys, NR), pack_keys, &f);
    run_tasks(launch->threads, p->batches * p->heads * ceil_div(p->queries, QUERIES), query_block, &f);
    return TP_OK;
}
