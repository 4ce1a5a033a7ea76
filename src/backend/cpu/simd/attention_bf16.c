/* Attention by products of bf16: the blocks and the running softmax of attention.c.
 *
 * Scores become weights, rounded to bf16, in the room of their f32; sums of the weights stay f32. A few
 * queries are left to the other kernels: they are bound by memory. */
#include "backend/cpu/simd/bf16.h"

#if BF16_PRODUCTS
#include "backend/cpu/simd/attention_bf16.h"

typedef struct forward {
    attention p;
    int64_t d, words, keys;          /* features padded to panels; words of them; keys padded to blocks */
    int64_t group_size, thread_size; /* floats: packed kᵀ and v; a block's buffers */
    float *packed, *blocks;
} forward;

static forward forward_of(const tpi_launch *launch) {
    forward f = {.p = attention_of(launch), .packed = tpi_scratch(launch)};
    const attention *p = &f.p;
    f.d = round_up(p->size, EDGE), f.words = words_of(p->size), f.keys = round_up(p->keys, SIDE);
    f.group_size = f.keys * (f.words + f.d / 2);
    f.thread_size = SIDE * (f.words + f.d + 2) + SIDE * SIDE + SIDE * words_of(SIDE);
    f.blocks = f.packed + p->batches * p->groups * f.group_size;
    return f;
}

ACCEPTS(attention_accepts) {
    return attention_forward_plain(step) && all_bf16(step) && !few_queries(step);
}

SCRATCH(attention_scratch) {
    tpi_step sized;
    const tpi_launch launch = launch_nowhere(step, &sized);
    forward f = forward_of(&launch);
    return (size_t)(f.p.batches * f.p.groups * f.group_size + f.thread_size * threads) * sizeof(float);
}

static void pack_keys(const void *job, int64_t i, int thread) {
    (void)thread;
    const forward *f = job;
    const attention *p = &f->p;
    const group_keys from = group_keys_of(p, i, f->keys / SIDE);
    if (from.n <= 0) return;
    float *kt = f->packed + from.group * f->group_size, *v = kt + f->keys * f->words;
    pack_right(tpi_matrix_transposed(from.k), p->size, from.n, kt + from.s * f->words, EDGE * f->words);
    pack_right(from.v, from.n, p->size, v + from.s / 2 * EDGE, f->keys / 2 * EDGE);
}

/* The keys [base, base + n) of one row: scores to exponentials, the row's maximum and sum brought forward. */
static void soften_row(const attention *p, const query_rows *w, int64_t r, int64_t base, int64_t n) {
    float *x = w->scores + r * SIDE, top = w->top[r], by = (float)p->attr->scale;
    int64_t first, end;
    visible_keys(p, w->b, w->t + r, &first, &end);
    first = most(first - base, 0), end = least(end - base, n);
    if (first < end) {
        scale_scores(p, by, w->b, w->h, w->t + r, base, base + first, base + end, x);
        top = fmaxf(top, row_max(x + first, end - first));
    }
    if (first >= end || top == -INFINITY) first = end = 0;
    const float sum = weigh_row(x, TP_BF16, first, end, n, top);
    const float kept = top == w->top[r] ? 1.0f : expf(w->top[r] - top);
    w->sum[r] = w->sum[r] * kept + sum, w->top[r] = top;
    if (kept == 1.0f) return;
    for (int64_t i = 0; i < w->d; i += VW)
        v_store(w->out + r * w->d + i, v_load(w->out + r * w->d + i) * v_set(kept));
}

static void begin_block(const forward *f, query_rows *w, float *space) {
    w->q = space, w->out = w->q + SIDE * f->words, w->top = w->out + SIDE * f->d, w->sum = w->top + SIDE;
    w->scores = w->sum + SIDE, w->weights = w->scores + SIDE * SIDE;
    pack_left(from_row(head_matrix(&f->p, 0, w->b, w->h), w->t), w->rows, f->p.size, w->q);
    memset(w->out, 0, sizeof(float) * (size_t)(SIDE * f->d));
    for (int64_t r = 0; r < w->rows; r++) w->top[r] = -INFINITY, w->sum[r] = 0.0f;
}

static void query_block(const void *job, int64_t i, int thread) {
    const forward *f = job;
    const attention *p = &f->p;
    int64_t lines = p->batches * p->heads, blocks = ceil_div(p->queries, LINES), line = i % lines;
    query_rows w = {.b = line / p->heads, .h = line % p->heads, .d = f->d};
    int64_t group = w.b * p->groups + w.h / (p->heads / p->groups), first, end;
    const float *kt = f->packed + group * f->group_size, *v = kt + f->keys * f->words;
    w.t = (blocks - 1 - i / lines) * LINES; /* the longest rows first */
    w.rows = least(LINES, p->queries - w.t);
    begin_block(f, &w, f->blocks + thread * f->thread_size);
    visible_block(p, w.b, w.t, w.rows, &first, &end);
    for (int64_t base = first / SIDE * SIDE; base < end; base += SIDE) {
        int64_t n = least(SIDE, end - base);
        multiply(w.rows, n, f->words, w.q, kt + base * f->words, EDGE * f->words, w.scores, SIDE, false);
        for (int64_t r = 0; r < w.rows; r++) soften_row(p, &w, r, base, n);
        pack_left(rounded(w.scores), w.rows, n, w.weights);
        multiply(w.rows, p->size, words_of(n), w.weights, v + base / 2 * EDGE, f->keys / 2 * EDGE, w.out, w.d,
                 true);
    }
    finish_rows(p, &w);
}

KERNEL(attention) {
    forward f = forward_of(launch);
    const attention *p = &f.p;
    run_tasks(launch->threads, p->batches * p->groups * (f.keys / SIDE), pack_keys, &f);
    run_tasks(launch->threads, p->batches * p->heads * ceil_div(p->queries, LINES), query_block, &f);
    return TP_OK;
}

#endif
