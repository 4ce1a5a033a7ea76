/* Reductions over any set of dimensions, and softmax. The trick: the input's dimensions are dealt into a kept
 * and a reduced operand over the same memory; for each position of the first, all of the second is walked. */
#include "backend/cpu/reference.h"

#include <math.h>

typedef struct reduction {
    tpi_operand kept, reduced, out;
} reduction;

static void append_dim(tpi_operand *operand, int64_t size, int64_t stride) {
    operand->shape[operand->rank] = size;
    operand->stride[operand->rank++] = stride;
    operand->count *= size;
}

static reduction deal(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    const tpi_attr_reduce *attr = step->attr;
    reduction r = {
        {.dtype = x->dtype, .count = 1}, {.dtype = x->dtype, .count = 1}, {.dtype = y->dtype, .count = 1}};
    int next = 0; /* of y's dimensions */
    for (int d = 0; d < x->rank; d++) {
        bool reduce = attr->dims >> d & 1u;
        append_dim(reduce ? &r.reduced : &r.kept, x->shape[d], x->stride[d]);
        if (!reduce) append_dim(&r.out, y->shape[next], y->stride[next]);
        next += !reduce || attr->keep;
    }
    return r;
}

/* A running reduction: what sum, mean, max, argmax and logsumexp need of the elements seen so far. */
typedef struct state {
    double sum, max, scaled; /* scaled: Σ exp(x - max) */
    int64_t seen, max_at;
} state;

static void take(state *s, tpi_op op, double x) {
    int64_t at = s->seen++;
    s->sum += x;
    bool more = at == 0 || (s->max == s->max && !(x <= s->max)); /* the first NaN stays */
    if (op == TPI_LOGSUMEXP && x > -INFINITY) {
        double max = x > s->max ? x : s->max;
        s->scaled = (s->scaled > 0 ? s->scaled * exp(s->max - max) : 0) + exp(x - max);
    }
    if (more) s->max = x, s->max_at = at;
}

static double result(const state *s, tpi_op op, tp_dtype dtype) {
    switch (op) {
    case TPI_SUM:
        return dtype == TP_I32 ? (double)(int32_t)(uint32_t)(uint64_t)(int64_t)s->sum : s->sum;
    case TPI_MEAN:
        return s->sum / (double)s->seen;
    case TPI_MAX:
        return s->max;
    case TPI_ARGMAX:
        return (double)s->max_at;
    case TPI_LOGSUMEXP:
        return isinf(s->max) || isnan(s->max) ? s->max : s->max + log(s->scaled);
    default:
        return NAN;
    }
}

static void reduce_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_step *step = launch->step;
    reduction r = deal(step);
    for (int64_t i = begin; i < end; i++) {
        state s = {0, -INFINITY, 0, 0, 0};
        tpi_walk walk;
        tpi_walk_init(&walk, r.reduced.rank, r.reduced.shape, -1);
        tpi_walk_add(&walk, &r.reduced, tpi_in(launch, 0), tpi_operand_offset(&r.kept, i));
        for (int64_t row = 0; row < walk.rows; row++, tpi_walk_next(&walk))
            for (int64_t k = 0; k < walk.length; k++) take(&s, (tpi_op)step->op, tpi_get(walk.at[0], k));
        tpi_vec y = {tpi_out(launch, 0), (tp_dtype)r.out.dtype, tpi_operand_offset(&r.out, i), 0};
        tpi_put(y, 0, result(&s, (tpi_op)step->op, y.dtype));
    }
}

static tp_status reduce(const tpi_launch *launch) {
    reduction r = deal(launch->step);
    tpi_for_rows(launch, r.out.count, r.reduced.count, reduce_rows);
    return TP_OK;
}

static tpi_walk walk_along(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const tpi_operand *x = tpi_in_operand(step, 0);
    tpi_walk walk;
    tpi_walk_init(&walk, x->rank, x->shape, (int)((const tpi_attr_dim *)step->attr)->dim);
    for (int k = 0; k < step->n_in; k++) tpi_walk_add(&walk, tpi_in_operand(step, k), tpi_in(launch, k), 0);
    tpi_walk_add(&walk, tpi_out_operand(step, 0), tpi_out(launch, 0), 0);
    return walk;
}

static void softmax_row(tpi_vec x, tpi_vec y, int64_t n) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) max = tpi_get(x, i) > max ? tpi_get(x, i) : max;
    bool empty = true; /* nothing but -inf: the row has no mass, and gives zeros instead of 0/0 */
    for (int64_t i = 0; i < n; i++) empty &= tpi_get(x, i) == -INFINITY;
    for (int64_t i = 0; i < n; i++) sum += exp(tpi_get(x, i) - max);
    for (int64_t i = 0; i < n; i++) tpi_put(y, i, empty ? 0 : exp(tpi_get(x, i) - max) / sum);
}

static void softmax_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_walk walk = walk_along(launch);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        softmax_row(walk.at[0], walk.at[1], walk.length);
}

/* dx = y·(dy - Σ y·dy) */
static void softmax_grad_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_walk walk = walk_along(launch);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        tpi_vec y = walk.at[0], dy = walk.at[1], dx = walk.at[2];
        double sum = 0;
        for (int64_t i = 0; i < walk.length; i++) sum += tpi_get(y, i) * tpi_get(dy, i);
        for (int64_t i = 0; i < walk.length; i++) tpi_put(dx, i, tpi_get(y, i) * (tpi_get(dy, i) - sum));
    }
}

static tp_status softmax(const tpi_launch *launch) {
    tpi_walk walk = walk_along(launch);
    if (walk.length == 0) return TP_OK;
    tpi_for_rows(launch, walk.rows, walk.length,
                 launch->step->op == TPI_SOFTMAX ? softmax_rows : softmax_grad_rows);
    return TP_OK;
}

/* ---- squares ---- */

static tp_status sum_squares(const tpi_launch *launch) {
    double sum = 0;
    for (int k = 0; k < launch->step->n_in; k++)
        for (int64_t i = 0; i < tpi_in_operand(launch->step, k)->count; i++) {
            const double x = tpi_get(tpi_cell(launch, k, i), 0);
            sum += x * x;
        }
    tpi_put(tpi_cell(launch, launch->step->n_in, 0), 0, sum);
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_reduce[] = {
    {TPI_SUM, {"reference", reduce, NULL, NULL}},
    {TPI_MEAN, {"reference", reduce, NULL, NULL}},
    {TPI_MAX, {"reference", reduce, NULL, NULL}},
    {TPI_ARGMAX, {"reference", reduce, NULL, NULL}},
    {TPI_SUM_SQUARES, {"reference", sum_squares, NULL, NULL}},
    {TPI_LOGSUMEXP, {"reference", reduce, NULL, NULL}},
    {TPI_SOFTMAX, {"reference", softmax, NULL, NULL}},
    {TPI_SOFTMAX_GRAD, {"reference", softmax, NULL, NULL}},
    TPI_KERNELS_END,
};
