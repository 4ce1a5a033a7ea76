/* Attention's gradient by products of bf16: the formulas of attention_grad.c in blocks.
 *
 * The trick: of the products with Pᵀ and dscoreᵀ, the transposes are computed, dvᵀ += doutᵀ·P and
 * dkᵀ += qᵀ·dscore, so that no block of weights is ever transposed: its rows are joined in pairs, or copied
 * as they are. P and dscore are rounded to bf16 in the room of their f32. */
#include "backend/cpu/simd/bf16.h"

#if BF16_PRODUCTS
#include "backend/cpu/simd/attention_bf16.h"

typedef struct backward {
    attention p;
    int64_t d, words, keys, pitch; /* features padded to panels; words of them; keys padded to blocks; dkᵀ's
                                      rows are `pitch` apart */
    int64_t turned;                /* floats of qᵀ, packed */
    int64_t group_size, head_size, thread_size; /* floats: packed kᵀ, vᵀ, k; dkᵀ, dvᵀ; a block's buffers */
    float *packed, *sums, *blocks;
} backward;

static backward backward_of(const tpi_launch *launch) {
    backward w = {.p = attention_of(launch), .packed = tpi_scratch(launch)};
    const attention *p = &w.p;
    w.d = round_up(p->size, EDGE), w.words = words_of(p->size), w.keys = round_up(p->keys, SIDE);
    w.pitch = w.keys + VW; /* rows a power of two apart would collide */
    w.group_size = w.keys * (2 * w.words + w.d / 2);
    w.head_size = 2 * w.d * w.pitch;
    w.turned = round_up(p->size, BF16_ROWS) * words_of(LINES);
    w.thread_size = SIDE * (2 * w.words + w.d + 2) + 2 * w.turned + 3 * SIDE * SIDE;
    w.sums = w.packed + p->batches * p->groups * w.group_size;
    w.blocks = w.sums + p->batches * p->heads * w.head_size;
    return w;
}

ACCEPTS(attention_grad_accepts) {
    return attention_grad_plain(step) && all_bf16(step) && tpi_in_operand(step, DOUT)->dtype == TP_BF16;
}

SCRATCH(attention_grad_scratch) {
    tpi_step sized;
    const tpi_launch launch = launch_nowhere(step, &sized);
    backward w = backward_of(&launch);
    const attention *p = &w.p;
    int64_t floats =
        p->batches * (p->groups * w.group_size + p->heads * w.head_size) + w.thread_size * threads;
    return (size_t)floats * sizeof(float);
}

/* What is packed of a group's keys. */
typedef struct group_panels {
    float *kt, *vt, *k;
} group_panels;

static group_panels panels_of(const backward *w, int64_t group) {
    float *kt = w->packed + group * w->group_size, *vt = kt + w->keys * w->words;
    return (group_panels){kt, vt, vt + w->keys * w->words};
}

static void pack_keys(const void *job, int64_t i, int thread) {
    (void)thread;
    const backward *w = job;
    const attention *p = &w->p;
    const group_keys from = group_keys_of(p, i, w->keys / SIDE);
    if (from.n <= 0) return;
    const group_panels to = panels_of(w, from.group);
    int64_t n = from.n, at = from.s * w->words;
    pack_right(tpi_matrix_transposed(from.k), p->size, n, to.kt + at, EDGE * w->words);
    pack_right(tpi_matrix_transposed(from.v), p->size, n, to.vt + at, EDGE * w->words);
    pack_right(from.k, n, p->size, to.k + from.s / 2 * EDGE, w->keys / 2 * EDGE);
}

/* A block of queries of one head, and the buffers of its thread. */
typedef struct block {
    int64_t b, h, t, rows;
    float *q, *dout, *q_turned, *dout_turned; /* packed as first operands */
    float *dq, *lse, *delta;
    float *p, *ds, *packed; /* [SIDE, SIDE] each */
} block;

static void place_buffers(const backward *w, block *k, float *space) {
    int64_t side = SIDE * w->words;
    k->q = space, k->dout = k->q + side;
    k->q_turned = k->dout + side, k->dout_turned = k->q_turned + w->turned;
    k->dq = k->dout_turned + w->turned, k->lse = k->dq + SIDE * w->d, k->delta = k->lse + SIDE;
    k->p = k->delta + SIDE, k->ds = k->p + SIDE * SIDE, k->packed = k->ds + SIDE * SIDE;
}

/* Σ dout·out of row t. The buffers are of SIDE floats: a longer row is taken in parts. */
static float row_delta(const attention *p, const block *k, int64_t t) {
    tpi_matrix out = head_matrix(p, OUT, k->b, k->h), dout = head_matrix(p, DOUT, k->b, k->h);
    float delta = 0.0f, dot, x[SIDE], y[SIDE];
    for (int64_t at = 0; at < p->size; at += SIDE) {
        int64_t n = least(SIDE, p->size - at);
        TPI_SIMD(to_f32)(out.data, out.dtype, t * out.rs + at, n, x);
        TPI_SIMD(to_f32)(dout.data, dout.dtype, t * dout.rs + at, n, y);
        ROW_SUM(dot, n, { term = row_get(x, i, part) * row_get(y, i, part); });
        delta += dot;
    }
    return delta;
}

static void begin_block(const backward *w, block *k) {
    const attention *p = &w->p;
    tpi_matrix q = from_row(head_matrix(p, Q, k->b, k->h), k->t);
    tpi_matrix dout = from_row(head_matrix(p, DOUT, k->b, k->h), k->t);
    const float *lse = (const float *)tpi_in(p->launch, LSE) + (k->b * p->heads + k->h) * p->queries + k->t;
    pack_left(q, k->rows, p->size, k->q);
    pack_left(dout, k->rows, p->size, k->dout);
    pack_left(tpi_matrix_transposed(q), p->size, k->rows, k->q_turned);
    pack_left(tpi_matrix_transposed(dout), p->size, k->rows, k->dout_turned);
    memset(k->dq, 0, sizeof(float) * (size_t)(SIDE * w->d));
    for (int64_t r = 0; r < k->rows; r++) k->delta[r] = row_delta(p, k, k->t + r), k->lse[r] = lse[r];
}

/* Row r of a block of keys: scores to probabilities, dout·vᵀ to the scores' gradient, both as bf16. */
static void grad_row(const backward *w, const block *k, int64_t r, int64_t base, int64_t n) {
    const attention *p = &w->p;
    float *x = k->p + r * SIDE, *y = k->ds + r * SIDE, by = (float)p->attr->scale;
    int64_t first, end;
    visible_keys(p, k->b, k->t + r, &first, &end);
    first = most(first - base, 0), end = k->lse[r] == -INFINITY ? 0 : least(end - base, n);
    if (first >= end) first = end = 0;
    if (p->mask) scale_scores(p, by, k->b, k->h, k->t + r, base, base + first, base + end, x);
    vf factor = v_set(p->mask ? 1.0f : by), lse = v_set(k->lse[r]), delta = v_set(k->delta[r]),
       scale = v_set(by);
    FOR_VECTORS(i, part, end - first) {
        vf e = v_exp(row_get(x + first, i, part) * factor - lse);
        vf d = e * (row_get(y + first, i, part) - delta) * scale;
        v_put(x, TP_BF16, first + i, e, part);
        v_put(y, TP_BF16, first + i, d, part);
    }
    clear_around(x, TP_BF16, first, end, n);
    clear_around(y, TP_BF16, first, end, n);
}

/* The block of keys [base, base + n): its share of dq, dkᵀ and dvᵀ. */
static void key_block(const backward *w, const block *k, int64_t base, int64_t n, float *dk, float *dv) {
    const attention *p = &w->p;
    int64_t size = p->size, words = w->words, of_queries = words_of(k->rows);
    group_panels g = panels_of(w, k->b * p->groups + k->h / (p->heads / p->groups));
    multiply(k->rows, n, words, k->q, g.kt + base * words, EDGE * words, k->p, SIDE, false);
    multiply(k->rows, n, words, k->dout, g.vt + base * words, EDGE * words, k->ds, SIDE, false);
    for (int64_t r = 0; r < k->rows; r++) grad_row(w, k, r, base, n);
    pack_right(rounded(k->p), k->rows, n, k->packed, EDGE * of_queries);
    multiply(size, n, of_queries, k->dout_turned, k->packed, EDGE * of_queries, dv + base, w->pitch, true);
    pack_right(rounded(k->ds), k->rows, n, k->packed, EDGE * of_queries);
    multiply(size, n, of_queries, k->q_turned, k->packed, EDGE * of_queries, dk + base, w->pitch, true);
    pack_left(rounded(k->ds), k->rows, n, k->packed);
    multiply(k->rows, size, words_of(n), k->packed, g.k + base / 2 * EDGE, w->keys / 2 * EDGE, k->dq, w->d,
             true);
}

static void head_task(const void *job, int64_t i, int thread) {
    const backward *w = job;
    const attention *p = &w->p;
    block k = {.b = i / p->heads, .h = i % p->heads};
    float *dk = w->sums + i * w->head_size, *dv = dk + w->head_size / 2;
    place_buffers(w, &k, w->blocks + thread * w->thread_size);
    memset(dk, 0, sizeof(float) * (size_t)w->head_size);
    for (k.t = 0; k.t < p->queries; k.t += LINES) {
        int64_t first, end;
        k.rows = least(LINES, p->queries - k.t);
        begin_block(w, &k);
        visible_block(p, k.b, k.t, k.rows, &first, &end);
        for (int64_t base = first / SIDE * SIDE; base < end; base += SIDE)
            key_block(w, &k, base, least(SIDE, end - base), dk, dv);
        write_rows(p, 0, k.dq, w->d, k.rows, (k.b * p->queries + k.t) * p->heads + k.h, p->heads);
    }
}

/* A block of a group's keys: dk and dv are the sums over the heads that share them. */
static void join_task(const void *job, int64_t i, int thread) {
    const backward *w = job;
    const attention *p = &w->p;
    int64_t parts = w->keys / SIDE, group = i / parts, s = i % parts * SIDE, share = p->heads / p->groups;
    int64_t b = group / p->groups, g = group % p->groups, n = least(SIDE, p->keys - s);
    block k;
    place_buffers(w, &k, w->blocks + thread * w->thread_size);
    for (int output = 0; output < 2; output++) {
        float *total = w->sums + (b * p->heads + g * share) * w->head_size + output * (w->head_size / 2) + s;
        for (int64_t j = 0; j < p->size; j++)
            for (int64_t h = 1; h < share; h++)
                for (float *x = total + j * w->pitch, *end = x + SIDE; x < end; x += VW)
                    v_store(x, v_load(x) + v_load(x + h * w->head_size));
        const tpi_matrix rows = {total, 1, w->pitch, TP_F32};
        TPI_SIMD(pack_rows)(&rows, 0, 0, n, p->size, k.dq, w->d);
        write_rows(p, 1 + output, k.dq, w->d, n, (b * p->keys + s) * p->groups + g, p->groups);
    }
}

KERNEL(attention_grad) {
    backward w = backward_of(launch);
    const attention *p = &w.p;
    int64_t blocks = p->batches * p->groups * (w.keys / SIDE);
    run_tasks(launch->threads, blocks, pack_keys, &w);
    run_tasks(launch->threads, p->batches * p->heads, head_task, &w);
    run_tasks(launch->threads, blocks, join_task, &w);
    return TP_OK;
}

#endif
