/* Attention by its definition, one query at a time: softmax(q·kᵀ·scale + mask)·v, and its gradient. q and out
 * are [B, T, H, D], k and v [B, S, G, D]; query head h reads key head h / (H / G). Scratch holds one row of
 * scores. */
#include "backend/cpu/reference.h"

#include <math.h>

/* What all queries of a launch share. */
typedef struct problem {
    const tpi_launch *launch;
    const tpi_attr_attention *attr;
    int64_t batches, queries, heads, keys, groups, features;
    int start, lengths, mask; /* input numbers; -1: absent */
} problem;

static problem problem_of(const tpi_launch *launch) {
    const tpi_operand *q = tpi_in_operand(launch->step, 0), *k = tpi_in_operand(launch->step, 1);
    problem p = {launch,      launch->step->attr, q->shape[0], q->shape[1], q->shape[2], k->shape[1],
                 k->shape[2], q->shape[3],        -1,          -1,          -1};
    int next = launch->step->op == TPI_ATTENTION ? 3 : 6;
    if (p.attr->has_start) p.start = next++;
    if (p.attr->has_lengths) p.lengths = next++;
    if (p.attr->has_mask) p.mask = next;
    return p;
}

/* The features of operand k (inputs, then outputs) at [b, t, h]. */
static tpi_vec features_at(const problem *p, int k, int64_t b, int64_t t, int64_t h) {
    const tpi_operand *operand = &p->launch->step->operands[k];
    const int64_t *stride = operand->stride;
    return (tpi_vec){p->launch->slots[p->launch->step->slots[k]], (tp_dtype)operand->dtype,
                     b * stride[0] + t * stride[1] + h * stride[2], stride[3]};
}

/* Element `row` of operand k, row-major. */
static tpi_vec cell(const problem *p, int k, int64_t row) {
    const tpi_operand *operand = &p->launch->step->operands[k];
    return (tpi_vec){p->launch->slots[p->launch->step->slots[k]], (tp_dtype)operand->dtype,
                     tpi_operand_offset(operand, row), 0};
}

static double dot(tpi_vec a, tpi_vec b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += tpi_get(a, i) * tpi_get(b, i);
    return sum;
}

static double mask_at(const problem *p, int64_t b, int64_t h, int64_t t, int64_t s) {
    if (p->mask < 0) return 0;
    const tpi_operand *mask = tpi_in_operand(p->launch->step, p->mask);
    const int64_t index[4] = {b, h, t, s};
    tpi_vec at = {(void *)tpi_in(p->launch, p->mask), (tp_dtype)mask->dtype, 0, 0};
    for (int d = 0; d < mask->rank; d++)
        if (mask->shape[d] != 1) at.offset += index[d + 4 - mask->rank] * mask->stride[d];
    return tpi_get(at, 0);
}

/* The keys that query [b, t] sees by position: first ... end-1. */
static void visible_keys(const problem *p, int64_t b, int64_t t, int64_t *first, int64_t *end) {
    int64_t position = t + (p->start >= 0 ? (int64_t)tpi_get(cell(p, p->start, b), 0) : 0);
    *first = 0, *end = p->keys;
    if (p->lengths >= 0) {
        int64_t length = (int64_t)tpi_get(cell(p, p->lengths, b), 0);
        *end = length < 0 ? 0 : length < *end ? length : *end;
    }
    if (p->attr->causal && position + 1 < *end) *end = position + 1 < 0 ? 0 : position + 1;
    if (p->attr->window > 0 && position - p->attr->window >= 0) *first = position - p->attr->window + 1;
    if (*first > *end) *first = *end;
}

/* Fills scores[first ... end-1]. */
static void score(const problem *p, int64_t b, int64_t h, int64_t t, int64_t first, int64_t end,
                  double *scores) {
    tpi_vec q = features_at(p, 0, b, t, h);
    int64_t g = h / (p->heads / p->groups);
    for (int64_t s = first; s < end; s++)
        scores[s] = dot(q, features_at(p, 1, b, s, g), p->features) * p->attr->scale + mask_at(p, b, h, t, s);
}

/* Turns scores into probabilities; returns their logsumexp. All -inf: the probabilities are 0. */
static double normalise(double *scores, int64_t first, int64_t end) {
    double max = -INFINITY, sum = 0;
    for (int64_t s = first; s < end; s++) max = scores[s] > max ? scores[s] : max;
    bool empty = true;
    for (int64_t s = first; s < end; s++) empty &= scores[s] == -INFINITY;
    for (int64_t s = first; s < end; s++) sum += scores[s] = empty ? 0 : exp(scores[s] - max);
    for (int64_t s = first; s < end && !empty; s++) scores[s] /= sum;
    return empty ? -INFINITY : max + log(sum);
}

static void attention_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    problem p = problem_of(launch);
    double *scores = (double *)tpi_scratch(launch) + piece * p.keys;
    int n_in = launch->step->n_in;
    for (int64_t row = begin; row < end; row++) { /* of lse, [B, H, T] */
        int64_t t = row % p.queries, h = row / p.queries % p.heads, b = row / p.queries / p.heads;
        int64_t g = h / (p.heads / p.groups), first, last;
        visible_keys(&p, b, t, &first, &last);
        score(&p, b, h, t, first, last, scores);
        double lse = normalise(scores, first, last);
        tpi_vec out = features_at(&p, n_in, b, t, h);
        for (int64_t d = 0; d < p.features; d++) {
            double sum = 0;
            for (int64_t s = first; s < last; s++) sum += scores[s] * tpi_get(features_at(&p, 2, b, s, g), d);
            tpi_put(out, d, sum);
        }
        tpi_put(cell(&p, n_in + 1, row), 0, lse);
    }
}

static size_t scores_a_thread(const tpi_step *step, int threads) {
    return (size_t)(tpi_in_operand(step, 1)->shape[1] * threads + 1) * sizeof(double); /* never 0: a slot */
}

static tp_status attention(const tpi_launch *launch) {
    problem p = problem_of(launch);
    tpi_for_rows(launch, p.batches * p.heads * p.queries, 2 * p.keys * p.features, attention_rows);
    return TP_OK;
}

/* ---- gradient: a piece is a key head of a sequence, since its queries share dk and dv ---- */

typedef struct sums {
    double *probabilities, *dscores, *dk, *dv; /* [S], [S], [S, D], [S, D] */
} sums;

/* With P = exp(score - lse): dv += Pᵀ·dout, dscore = P·(dout·vᵀ - Σ dout·out)·scale, dq = dscore·k and
 * dk += dscoreᵀ·q. */
static void query_grad(const problem *p, sums *a, int64_t b, int64_t h, int64_t t) {
    int64_t g = h / (p->heads / p->groups), first, end;
    int n_in = p->launch->step->n_in;
    tpi_vec q = features_at(p, 0, b, t, h), dout = features_at(p, 5, b, t, h),
            dq = features_at(p, n_in, b, t, h);
    double lse = tpi_get(cell(p, 4, (b * p->heads + h) * p->queries + t), 0);
    double along = dot(dout, features_at(p, 3, b, t, h), p->features);
    visible_keys(p, b, t, &first, &end);
    if (lse == -INFINITY) end = first;
    score(p, b, h, t, first, end, a->probabilities);
    for (int64_t s = first; s < end; s++) {
        double probability = exp(a->probabilities[s] - lse);
        double dprobability = dot(dout, features_at(p, 2, b, s, g), p->features);
        a->dscores[s] = probability * (dprobability - along) * p->attr->scale;
        for (int64_t d = 0; d < p->features; d++) {
            a->dk[s * p->features + d] += a->dscores[s] * tpi_get(q, d);
            a->dv[s * p->features + d] += probability * tpi_get(dout, d);
        }
    }
    for (int64_t d = 0; d < p->features; d++) {
        double sum = 0;
        for (int64_t s = first; s < end; s++) sum += a->dscores[s] * tpi_get(features_at(p, 1, b, s, g), d);
        tpi_put(dq, d, sum);
    }
}

static void attention_grad_heads(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    problem p = problem_of(launch);
    int64_t matrix = p.keys * p.features;
    double *base = (double *)tpi_scratch(launch) + piece * 2 * (p.keys + matrix);
    sums a = {base, base + p.keys, base + 2 * p.keys, base + 2 * p.keys + matrix};
    int n_in = launch->step->n_in;
    for (int64_t head = begin; head < end; head++) {
        int64_t b = head / p.groups, g = head % p.groups, share = p.heads / p.groups;
        for (int64_t i = 0; i < matrix; i++) a.dk[i] = a.dv[i] = 0;
        for (int64_t h = g * share; h < (g + 1) * share; h++)
            for (int64_t t = 0; t < p.queries; t++) query_grad(&p, &a, b, h, t);
        for (int64_t s = 0; s < p.keys; s++)
            for (int64_t d = 0; d < p.features; d++) {
                tpi_put(features_at(&p, n_in + 1, b, s, g), d, a.dk[s * p.features + d]);
                tpi_put(features_at(&p, n_in + 2, b, s, g), d, a.dv[s * p.features + d]);
            }
    }
}

static size_t grad_sums_a_thread(const tpi_step *step, int threads) {
    const tpi_operand *k = tpi_in_operand(step, 1);
    return (size_t)(2 * k->shape[1] * (1 + k->shape[3]) * threads + 1) * sizeof(double);
}

static tp_status attention_grad(const tpi_launch *launch) {
    problem p = problem_of(launch);
    tpi_for_rows(launch, p.batches * p.groups, 5 * p.queries * p.keys * p.features, attention_grad_heads);
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_attention[] = {
    {TPI_ATTENTION, {"reference", attention, NULL, scores_a_thread}},
    {TPI_ATTENTION_GRAD, {"reference", attention_grad, NULL, grad_sums_a_thread}},
    TPI_KERNELS_END,
};
