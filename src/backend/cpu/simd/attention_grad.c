/* Attention's gradient in blocks (Dao 2023): probabilities are computed again from the kept logsumexp.
 *
 * With P = exp(score - lse) and Δ = Σ dout·out of a row: dv = Pᵀ·dout, dscore = P·(dout·vᵀ - Δ)·scale,
 * dq = dscore·k, dk = dscoreᵀ·q. A task is one head of one sequence; heads that share keys leave their dk and
 * dv in scratch, where they are added in order. */
#include "backend/cpu/simd/attention.h"

typedef struct backward {
    attention p;
    int64_t d, group_size, head_size,
        thread_size; /* floats: padded features; packed k, kᵀ, vᵀ; dk, dv; blocks */
    float *packed, *sums, *blocks;
} backward;

static backward backward_of(const tpi_launch *launch) {
    backward w = {.p = attention_of(launch), .packed = tpi_scratch(launch)};
    const attention *p = &w.p;
    int64_t keys = round_up(p->keys, KEYS), q = round_up(QUERIES, MR);
    w.d = round_up(p->size, NR);
    w.group_size = keys * (w.d + 2 * p->size);
    w.head_size = 2 * keys * w.d;
    w.thread_size = round_up(q * (2 * p->size + 3 * w.d + 2) + 2 * q * KEYS + (KEYS + MR) * q, 16);
    w.sums = w.packed + p->batches * p->groups * w.group_size;
    w.blocks = w.sums + p->batches * p->heads * w.head_size;
    return w;
}

ACCEPTS(attention_grad_accepts) {
    return attention_grad_plain(step);
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

/* Packs KEYS keys of a group three ways: k as rows, kᵀ and vᵀ. */
static void pack_keys(const void *job, int64_t i, int thread) {
    (void)thread;
    const backward *w = job;
    const attention *p = &w->p;
    int64_t parts = ceil_div(p->keys, KEYS), group = i / parts, s = i % parts * KEYS, b = group / p->groups;
    int64_t n = least(KEYS, last_key(p, b) - s), keys = parts * KEYS;
    if (n <= 0) return;
    float *rows = w->packed + group * w->group_size, *kt = rows + keys * w->d, *vt = kt + keys * p->size;
    tpi_matrix k = head_matrix(p, K, b, group % p->groups), v = head_matrix(p, V, b, group % p->groups);
    tpi_matrix k_turned = tpi_matrix_transposed(k), v_turned = tpi_matrix_transposed(v);
    TPI_SIMD(pack_b)(&k, s, 0, n, p->size, rows + s * NR, keys * NR);
    TPI_SIMD(pack_b)(&k_turned, 0, s, p->size, n, kt + s * p->size, NR * p->size);
    TPI_SIMD(pack_b)(&v_turned, 0, s, p->size, n, vt + s * p->size, NR * p->size);
}

/* A block of queries of one head, and the buffers of its thread. */
typedef struct block {
    int64_t b, h, t, rows;
    float *q, *dout;           /* packed as rows of tiles */
    float *q_side, *dout_side; /* packed as the second operand, for dk and dv */
    float *dq, *lse, *delta;
    float *p, *ds, *turned; /* [QUERIES, KEYS] each; packed */
} block;

static void place_buffers(const backward *w, block *k, float *space) {
    int64_t q = round_up(QUERIES, MR), size = w->p.size;
    k->q = space, k->dout = k->q + q * size, k->q_side = k->dout + q * size;
    k->dout_side = k->q_side + q * w->d, k->dq = k->dout_side + q * w->d;
    k->lse = k->dq + q * w->d, k->delta = k->lse + q;
    k->p = k->delta + q, k->ds = k->p + q * KEYS, k->turned = k->ds + q * KEYS;
}

static void begin_block(const backward *w, block *k) {
    const attention *p = &w->p;
    tpi_matrix q = head_matrix(p, Q, k->b, k->h), dout = head_matrix(p, DOUT, k->b, k->h);
    tpi_matrix out = head_matrix(p, OUT, k->b, k->h);
    const float *lse = (const float *)tpi_in(p->launch, LSE) + (k->b * p->heads + k->h) * p->queries + k->t;
    TPI_SIMD(pack_a)(&q, k->t, 0, k->rows, p->size, k->q, MR * p->size);
    TPI_SIMD(pack_a)(&dout, k->t, 0, k->rows, p->size, k->dout, MR * p->size);
    TPI_SIMD(pack_b)(&q, k->t, 0, k->rows, p->size, k->q_side, NR * k->rows);
    TPI_SIMD(pack_b)(&dout, k->t, 0, k->rows, p->size, k->dout_side, NR * k->rows);
    memset(k->dq, 0, sizeof(float) * (size_t)(QUERIES * w->d));
    for (int64_t r = 0; r < k->rows; r++) {
        float *a = k->p,
              *b = k->ds; /* free until the first block of keys; a row fits, else it is taken in parts */
        double delta = 0.0;
        for (int64_t at = 0; at < p->size; at += KEYS) {
            int64_t n = least(KEYS, p->size - at);
            float dot;
            TPI_SIMD(to_f32)(out.data, out.dtype, (k->t + r) * out.rs + at, n, a);
            TPI_SIMD(to_f32)(dout.data, dout.dtype, (k->t + r) * dout.rs + at, n, b);
            const float *x = a, *y = b;
            ROW_SUM(dot, n, { term = row_get(x, i, part) * row_get(y, i, part); });
            delta += (double)dot;
        }
        k->delta[r] = (float)delta, k->lse[r] = lse[r];
    }
}

/* Row r of a block of keys: scores to probabilities, dout·vᵀ to the scores' gradient. */
static void grad_row(const backward *w, const block *k, int64_t r, int64_t base, int64_t n) {
    const attention *p = &w->p;
    float *probability = k->p + r * KEYS, *ds = k->ds + r * KEYS;
    int64_t first, end;
    visible_keys(p, k->b, k->t + r, &first, &end);
    first = most(first, base), end = least(end, base + n);
    if (first >= end || k->lse[r] == -INFINITY) {
        memset(probability, 0, sizeof(float) * (size_t)n);
        memset(ds, 0, sizeof(float) * (size_t)n);
        return;
    }
    scale_scores(p, (float)p->attr->scale, k->b, k->h, k->t + r, base, first, end, probability);
    vf lse = v_set(k->lse[r]), delta = v_set(k->delta[r]), scale = v_set((float)p->attr->scale);
    float *x = probability + (first - base), *y = ds + (first - base);
    FOR_VECTORS(i, part, end - first) {
        vf e = v_exp(row_get(x, i, part) - lse);
        v_put(x, TP_F32, i, e, part);
        v_put(y, TP_F32, i, e * (row_get(y, i, part) - delta) * scale, part);
    }
    memset(probability, 0, sizeof(float) * (size_t)(first - base));
    memset(ds, 0, sizeof(float) * (size_t)(first - base));
    memset(probability + (end - base), 0, sizeof(float) * (size_t)(base + n - end));
    memset(ds + (end - base), 0, sizeof(float) * (size_t)(base + n - end));
}

/* The block of keys [base, base + n): its share of dq, dk and dv. */
static void key_block(const backward *w, const block *k, int64_t base, int64_t n, float *dk, float *dv) {
    const attention *p = &w->p;
    int64_t keys = round_up(p->keys, KEYS), size = p->size;
    int64_t group = k->b * p->groups + k->h / (p->heads / p->groups);
    const float *rows = w->packed + group * w->group_size, *kt = rows + keys * w->d, *vt = kt + keys * size;
    tpi_matrix probability = {k->p, KEYS, 1, TP_F32}, ds = {k->ds, KEYS, 1, TP_F32};
    tpi_matrix p_turned = tpi_matrix_transposed(probability), ds_turned = tpi_matrix_transposed(ds);
    panels_product(k->rows, n, size, k->q, kt + base * size, NR * size, k->p, KEYS, false);
    panels_product(k->rows, n, size, k->dout, vt + base * size, NR * size, k->ds, KEYS, false);
    for (int64_t r = 0; r < k->rows; r++) grad_row(w, k, r, base, n);
    TPI_SIMD(pack_a)(&p_turned, 0, 0, n, k->rows, k->turned, MR * k->rows);
    panels_product(n, size, k->rows, k->turned, k->dout_side, NR * k->rows, dv + base * w->d, w->d, true);
    TPI_SIMD(pack_a)(&ds_turned, 0, 0, n, k->rows, k->turned, MR * k->rows);
    panels_product(n, size, k->rows, k->turned, k->q_side, NR * k->rows, dk + base * w->d, w->d, true);
    TPI_SIMD(pack_a)(&ds, 0, 0, k->rows, n, k->turned, MR * n);
    panels_product(k->rows, size, n, k->turned, rows + base * NR, keys * NR, k->dq, w->d, true);
}

static void head_task(const void *job, int64_t i, int thread) {
    const backward *w = job;
    const attention *p = &w->p;
    block k = {.b = i / p->heads, .h = i % p->heads};
    float *dk = w->sums + i * w->head_size, *dv = dk + w->head_size / 2;
    place_buffers(w, &k, w->blocks + thread * w->thread_size);
    memset(dk, 0, sizeof(float) * (size_t)w->head_size);
    for (k.t = 0; k.t < p->queries; k.t += QUERIES) {
        int64_t first, end;
        k.rows = least(QUERIES, p->queries - k.t);
        begin_block(w, &k);
        visible_block(p, k.b, k.t, k.rows, &first, &end);
        for (int64_t base = first / KEYS * KEYS; base < end; base += KEYS)
            key_block(w, &k, base, least(KEYS, end - base), dk, dv);
        write_rows(p, 0, k.dq, w->d, k.rows, (k.b * p->queries + k.t) * p->heads + k.h, p->heads);
    }
}

/* Key i's row of dk and dv in the output: the sum over the heads that share it. */
static void join_task(const void *job, int64_t i, int thread) {
    (void)thread;
    const backward *w = job;
    const attention *p = &w->p;
    int64_t g = i % p->groups, b = i / p->groups, share = p->heads / p->groups;
    for (int k = 0; k < 2; k++) {
        float *total = w->sums + (b * p->heads + g * share) * w->head_size + k * (w->head_size / 2);
        for (int64_t h = 1; h < share && tpi_out(p->launch, 1 + k); h++)
            for (int64_t j = 0; j < p->keys * w->d; j += VW)
                v_store(total + j, v_load(total + j) + v_load(total + h * w->head_size + j));
        write_rows(p, 1 + k, total, w->d, p->keys, b * p->keys * p->groups + g, p->groups);
    }
}

KERNEL(attention_grad) {
    backward w = backward_of(launch);
    const attention *p = &w.p;
    run_tasks(launch->threads, p->batches * p->groups * ceil_div(p->keys, KEYS), pack_keys, &w);
    run_tasks(launch->threads, p->batches * p->heads, head_task, &w);
    run_tasks(launch->threads, p->batches * p->groups, join_task, &w);
    return TP_OK;
}
