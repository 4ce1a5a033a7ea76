/* Attention's problem as its kernels see it: matrices of one head, which keys a query sees, tasks for
 * threads.
 *
 * Invariant: of one sequence, later queries see keys as far or farther on at either end, so a block of
 * queries sees what lies between the first one's first key and the last one's last. */
#ifndef TAPER_SIMD_ATTENTION_H
#define TAPER_SIMD_ATTENTION_H

#include "backend/cpu/simd/gemm.h"
#include "backend/cpu/simd/row.h"
#include "backend/cpu/simd/tasks.h"
#include "ops/op.h"

#define QUERIES (VW == 16 ? 4 * MR : 8 * MR) /* a block of queries */
#define KEYS    128                          /* a block of keys: whole panels */
#define FEW     64                           /* queries of a group, up to which keys are divided */

typedef struct attention {
    const tpi_launch *launch;
    const tpi_attr_attention *attr;
    int64_t batches, queries, heads, keys, groups, size; /* size: features of a head */
    const int32_t *start, *lengths;                      /* [B], or NULL */
    const tpi_operand *mask_operand;                     /* NULL: no mask */
    const float *mask;
} attention;

static inline attention attention_of(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const tpi_operand *q = tpi_in_operand(step, 0), *k = tpi_in_operand(step, 1);
    attention p = {.launch = launch,
                   .attr = step->attr,
                   .batches = q->shape[0],
                   .queries = q->shape[1],
                   .heads = q->shape[2],
                   .keys = k->shape[1],
                   .groups = k->shape[2],
                   .size = q->shape[3]};
    int next = step->op == TPI_ATTENTION ? 3 : 6;
    if (p.attr->has_start) p.start = tpi_in(launch, next++);
    if (p.attr->has_lengths) p.lengths = tpi_in(launch, next++);
    if (p.attr->has_mask) p.mask_operand = tpi_in_operand(step, next), p.mask = tpi_in(launch, next);
    return p;
}

/* A launch of the step whose operands lie nowhere, to ask sizes of; `sized` is its step. */
static inline tpi_launch launch_nowhere(const tpi_step *step, tpi_step *sized) {
    static const uint32_t slots[16];
    static void *const none[1];
    *sized = *step;
    sized->slots = slots;
    return (tpi_launch){sized, none, NULL, NULL};
}

/* The first `rows` operands are [B, T or S, heads, D] floats with contiguous features; start, lengths and
 * mask lie plainly. */
static inline bool attention_plain(const tpi_step *step, int rows) {
    const tpi_attr_attention *attr = step->attr;
    int next = rows + (step->op == TPI_ATTENTION ? 0 : 3);
    for (int k = 0; k < rows; k++) {
        const tpi_operand *x = tpi_in_operand(step, k);
        if (x->rank != 4 || !tpi_float_operand(x) || x->stride[3] != 1 || !x->count) return false;
    }
    for (int k = 0; k < attr->has_start + attr->has_lengths; k++, next++)
        if (tpi_in_operand(step, next)->dtype != TP_I32 || !tpi_in_operand(step, next)->contiguous)
            return false;
    if (!attr->has_mask) return true;
    const tpi_operand *mask = tpi_in_operand(step, next);
    return mask->dtype == TP_F32 && mask->rank >= 1 &&
           (mask->shape[mask->rank - 1] == 1 || mask->stride[mask->rank - 1] == 1);
}

static inline bool attention_forward_plain(const tpi_step *step) {
    const tpi_operand *y = tpi_out_operand(step, 0), *lse = tpi_out_operand(step, 1);
    return attention_plain(step, 3) && y->contiguous && tpi_float_operand(y) && lse->dtype == TP_F32 &&
           lse->contiguous;
}

/* Whether q, k and v are bf16. */
static inline bool all_bf16(const tpi_step *step) {
    for (int k = 0; k < 3; k++)
        if (tpi_in_operand(step, k)->dtype != TP_BF16) return false;
    return true;
}

/* Whether keys are divided, of a step that is plain. */
static inline bool few_queries(const tpi_step *step) {
    const tpi_operand *q = tpi_in_operand(step, 0), *k = tpi_in_operand(step, 1);
    return q->shape[1] * (q->shape[2] / k->shape[2]) <= FEW;
}

/* The gradient's inputs 0 ... 5: q, k, v, out, lse, dout. */
enum { Q, K, V, OUT, LSE, DOUT };

static inline bool attention_grad_plain(const tpi_step *step) {
    if (!attention_plain(step, 3)) return false;
    const int rows[] = {OUT, DOUT};
    for (int i = 0; i < 2; i++) {
        const tpi_operand *x = tpi_in_operand(step, rows[i]);
        if (x->rank != 4 || !tpi_float_operand(x) || x->stride[3] != 1) return false;
    }
    for (int k = 0; k < 3; k++)
        if (!tpi_out_operand(step, k)->contiguous || !tpi_float_operand(tpi_out_operand(step, k)))
            return false;
    const tpi_operand *lse = tpi_in_operand(step, LSE);
    return lse->dtype == TP_F32 && lse->contiguous;
}

/* The matrix [tokens, features] of a head of input k. */
static inline tpi_matrix head_matrix(const attention *p, int k, int64_t b, int64_t head) {
    const tpi_operand *x = tpi_in_operand(p->launch->step, k);
    const char *data = tpi_in(p->launch, k);
    data += (b * x->stride[0] + head * x->stride[2]) * dtype_size(x->dtype);
    return (tpi_matrix){data, x->stride[1], 1, x->dtype};
}

/* The keys that query t of sequence b sees: first ... end-1. */
static inline void visible_keys(const attention *p, int64_t b, int64_t t, int64_t *first, int64_t *end) {
    int64_t position = t + (p->start ? p->start[b] : 0), window = p->attr->window;
    *first = 0, *end = p->keys;
    if (p->lengths) *end = most(0, least(p->lengths[b], *end));
    if (p->attr->causal) *end = most(0, least(position + 1, *end));
    if (window > 0 && position >= window) *first = least(position - window + 1, *end);
}

/* The keys that any of the queries t ... t + rows - 1 sees lie between these. */
static inline void visible_block(const attention *p, int64_t b, int64_t t, int64_t rows, int64_t *first,
                                 int64_t *end) {
    int64_t ignored;
    visible_keys(p, b, t, first, &ignored);
    visible_keys(p, b, t + rows - 1, &ignored, end);
}

/* The first of the queries t, t + 1, ... of sequence b that may see key `key`, as a distance from t. */
static inline int64_t first_query(const attention *p, int64_t b, int64_t t, int64_t key) {
    return p->attr->causal ? most(0, key - t - (p->start ? p->start[b] : 0)) : 0;
}

/* Keys that any query of sequence b sees lie before this one. */
static inline int64_t last_key(const attention *p, int64_t b) {
    int64_t first, end;
    visible_keys(p, b, p->queries - 1, &first, &end);
    return end;
}

/* x = scores·by + mask for keys [from, to) of query (b, h, t), scores[0] being key `base`'s. */
static inline void scale_scores(const attention *p, float by, int64_t b, int64_t h, int64_t t, int64_t base,
                                int64_t from, int64_t to, float *scores) {
    vf scale = v_set(by);
    float *x = scores + (from - base);
    if (!p->mask) {
        if (by == 1.0f) return;
        FOR_VECTORS(i, part, to - from) v_put(x, TP_F32, i, row_get(x, i, part) * scale, part);
        return;
    }
    const tpi_operand *mask = p->mask_operand;
    const int64_t index[4] = {b, h, t, from};
    const float *m = p->mask;
    bool each = mask->shape[mask->rank - 1] != 1;
    for (int d = 0; d < mask->rank; d++)
        if (mask->shape[d] != 1) m += index[d + 4 - mask->rank] * mask->stride[d];
    FOR_VECTORS(i, part, to - from) {
        vf add = each ? row_get(m, i, part) : v_set(*m);
        v_put(x, TP_F32, i, v_fma(row_get(x, i, part), scale, add), part);
    }
}

/* Zeros in a row of n elements but for [from, to). */
static inline void clear_around(void *row, int dtype, int64_t from, int64_t to, int64_t n) {
    const int64_t size = dtype_size(dtype);
    memset(row, 0, (size_t)(size * from));
    memset((char *)row + size * to, 0, (size_t)(size * (n - to)));
}

/* A row of n scores to weights of `dtype`, in their room: exponentials of those in [from, to) less `top`, and
 * zeros. Returns the sum of the exponentials before they are rounded. */
INLINE float weigh_row(float *x, int dtype, int64_t from, int64_t to, int64_t n, float top) {
    const vf shift = v_set(top);
    float sum;
    ROW_SUM(sum, to - from, {
        vf e = v_exp_term(row_get(x + from, i, part) - shift);
        v_put(x, dtype, from + i, e, part);
        term = part < VW ? v_keep(e, part) : e;
    });
    clear_around(x, dtype, from, to, n);
    return sum;
}

/* A block of queries at work. */
typedef struct query_rows {
    int64_t b, h, t, rows, d; /* d: floats of an output row */
    float *q, *scores, *weights, *out, *top, *sum;
} query_rows;

/* Divides the rows by their sums and writes them, with their logsumexp. */
static inline void finish_rows(const attention *p, const query_rows *w) {
    const tpi_operand *y = tpi_out_operand(p->launch->step, 0);
    float *lse = tpi_out(p->launch, 1);
    for (int64_t r = 0; r < w->rows; r++) {
        float *x = w->out + r * w->d;
        vf scale = v_set(w->sum[r] == 0.0f ? 0.0f : 1.0f / w->sum[r]);
        for (int64_t i = 0; i < w->d; i += VW) v_store(x + i, v_load(x + i) * scale);
        int64_t t = w->t + r, at = ((w->b * p->queries + t) * p->heads + w->h) * p->size;
        TPI_SIMD(from_f32)(x, tpi_out(p->launch, 0), y->dtype, at, p->size);
        if (lse)
            lse[(w->b * p->heads + w->h) * p->queries + t] =
                w->sum[r] == 0.0f ? -INFINITY : w->top[r] + logf(w->sum[r]);
    }
}

/* c [rows, n] (row stride ld) = or += packed a · packed b; panels of b are `pitch` floats apart. */
static inline void panels_product(int64_t rows, int64_t n, int64_t k, const float *a, const float *b,
                                  int64_t pitch, float *c, int64_t ld, bool accumulate) {
    for (int64_t j = 0; j < n; j += NR)
        GEMM_PANEL(rows, least(NR, n - j), k, a, b + j / NR * pitch, NR, NULL, c + j, ld, accumulate);
}

/* n rows of f32, ld apart, to rows first, first + step, ... of an output, if it is wanted. */
static inline void write_rows(const attention *p, int output, const float *rows, int64_t ld, int64_t n,
                              int64_t first, int64_t step) {
    void *out = tpi_out(p->launch, output);
    int dtype = tpi_out_operand(p->launch->step, output)->dtype;
    for (int64_t r = 0; r < n && out; r++)
        TPI_SIMD(from_f32)(rows + r * ld, out, dtype, (first + r * step) * p->size, p->size);
}

#endif
