/* Sums, means, maxima, argmax and logsumexp over neighbouring dimensions: [outer, reduced, inner].
 *
 * The trick: a long row is cut into pieces of a fixed length whose results are joined in order, so that one
 * row occupies all threads and the result depends on neither their number nor their timing. */
#include "backend/cpu/simd/row.h"

#define PIECE   32768
#define COLUMNS 512

typedef struct extents {
    int64_t outer, reduced, inner;
} extents;

/* False if the reduced dimensions are not neighbours (sizes of 1 do not count). */
static bool extents_of(const tpi_step *step, extents *e) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    const tpi_attr_reduce *attr = step->attr;
    *e = (extents){1, 1, 1};
    for (int d = 0; d < x->rank; d++) {
        if (x->shape[d] == 1) continue;
        bool reduce = attr->dims >> d & 1u;
        if (reduce && e->inner != 1) return false;
        if (reduce)
            e->reduced *= x->shape[d];
        else if (e->reduced != 1)
            e->inner *= x->shape[d];
        else
            e->outer *= x->shape[d];
    }
    return true;
}

ACCEPTS(reduce_accepts) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    extents e;
    if (!x->contiguous || !tpi_float_operand(x) || !y->contiguous || !x->count || !extents_of(step, &e))
        return false;
    if (step->op == TPI_ARGMAX) return e.inner == 1;
    if (!tpi_float_operand(y)) return false;
    return e.inner == 1 || step->op == TPI_SUM || step->op == TPI_MEAN;
}

/* ---- rows: inner is 1 ---- */

static float sum_row(const float *x, int64_t n) {
    float sum;
    ROW_SUM(sum, n, { term = row_get(x, i, part); });
    return sum;
}

/* The maximum, NaN if there is one. */
static float max_row(const float *x, int64_t n) {
    vf nan = v_set(0.0f);
    FOR_VECTORS(i, part, n) {
        vf v = row_get(x, i, part);
        nan = v_blend(v_eq(v, v), nan, v);
    }
    return v_sum(nan) == 0.0f ? row_max(x, n) : NAN;
}

static int64_t first_max(const float *x, int64_t n) {
    float top = max_row(x, n);
    for (int64_t i = 0; i < n; i++)
        if (x[i] == top || x[i] != x[i]) return i;
    return 0;
}

float TPI_SIMD(logsumexp_row)(const float *x, int64_t n) {
    float top = row_max(x, n), sum;
    if (isinf(top)) return top;
    vf shift = v_set(top);
    ROW_SUM(sum, n, {
        vf e = v_exp(row_get(x, i, part) - shift);
        term = part < VW ? v_keep(e, part) : e;
    });
    return (float)((double)top + log((double)sum));
}

/* One number for elements [0, n) of a row; sums and maxima of pieces are joined by the caller. */
static float of_row(int op, const float *x, int64_t n) {
    switch (op) {
    case TPI_MAX:
        return max_row(x, n);
    case TPI_LOGSUMEXP: {
        float top = max_row(x, n);
        return isnan(top) ? top : TPI_SIMD(logsumexp_row)(x, n);
    }
    default:
        return sum_row(x, n);
    }
}

typedef struct row_pieces {
    const tpi_launch *launch;
    int64_t n, length, per_row; /* row, piece, pieces of a row */
    float *partial, *space;     /* space: a row of f32 for each task, where x is not f32 */
} row_pieces;

static const float *elements(const row_pieces *p, int64_t at, int64_t n, int64_t task) {
    const tpi_operand *x = tpi_in_operand(p->launch->step, 0);
    const void *data = tpi_in(p->launch, 0);
    if (x->dtype == TP_F32) return (const float *)data + at;
    float *space = p->space + task * p->length;
    TPI_SIMD(to_f32)(data, x->dtype, at, n, space);
    return space;
}

static void run_pieces(void *arg, int64_t begin, int64_t end) {
    const row_pieces *p = arg;
    int op = p->launch->step->op;
    for (int64_t i = begin; i < end; i++) {
        int64_t from = i % p->per_row * p->length, n = least(p->length, p->n - from);
        const float *x = elements(p, i / p->per_row * p->n + from, n, i);
        if (op == TPI_ARGMAX)
            ((int32_t *)tpi_out(p->launch, 0))[i] = (int32_t)first_max(x, n);
        else
            p->partial[i] = of_row(op, x, n);
    }
}

static int64_t piece_length(const tpi_step *step, const extents *e) {
    return step->op == TPI_SUM || step->op == TPI_MEAN ? least(e->reduced, PIECE) : e->reduced;
}

SCRATCH(reduce_scratch) {
    (void)threads;
    extents e;
    if (!extents_of(step, &e)) return 0;
    if (e.inner > 1) return (size_t)(e.outer * e.inner) * sizeof(float);
    int64_t length = piece_length(step, &e), pieces = e.outer * ceil_div(e.reduced, length);
    bool converts = tpi_in_operand(step, 0)->dtype != TP_F32;
    return (size_t)round_up((pieces + (converts ? pieces * length : 0)) * 4, 64);
}

static void join_pieces(const row_pieces *p, int64_t rows) {
    const tpi_step *step = p->launch->step;
    double scale = step->op == TPI_MEAN ? (double)p->n : 1.0;
    for (int64_t row = 0; row < rows; row++) {
        double sum = (double)p->partial[row * p->per_row];
        for (int64_t i = 1; i < p->per_row; i++) sum += (double)p->partial[row * p->per_row + i];
        tpi_store_f32(tpi_out(p->launch, 0), (tp_dtype)tpi_out_operand(step, 0)->dtype, row,
                      (float)(sum / scale));
    }
}

/* ---- columns: rows are added up, a band of columns a thread ---- */

typedef struct column_job {
    const tpi_launch *launch;
    extents e;
    float *sums;
} column_job;

static void add_columns(const column_job *job, int64_t outer, int64_t j, int64_t n) {
    const tpi_operand *x = tpi_in_operand(job->launch->step, 0);
    const void *data = tpi_in(job->launch, 0);
    const extents *e = &job->e;
    float *sums = job->sums + outer * e->inner + j, row[COLUMNS];
    memset(sums, 0, sizeof(float) * (size_t)n);
    for (int64_t r = 0; r < e->reduced; r++) {
        int64_t at = (outer * e->reduced + r) * e->inner + j;
        const float *from = x->dtype == TP_F32 ? (const float *)data + at : row;
        if (from == row) TPI_SIMD(to_f32)(data, x->dtype, at, n, row);
        FOR_VECTORS(i, part, n) v_put(sums, TP_F32, i, row_get(sums, i, part) + row_get(from, i, part), part);
    }
    if (job->launch->step->op == TPI_MEAN) {
        vf scale = v_set((float)(1.0 / (double)e->reduced));
        FOR_VECTORS(i, part, n) v_put(sums, TP_F32, i, row_get(sums, i, part) * scale, part);
    }
    const tpi_operand *y = tpi_out_operand(job->launch->step, 0);
    TPI_SIMD(from_f32)(sums, tpi_out(job->launch, 0), y->dtype, outer * e->inner + j, n);
}

/* Elements [begin, end) of the output. */
static void run_columns(void *arg, int64_t begin, int64_t end) {
    const column_job *job = arg;
    int64_t inner = job->e.inner;
    for (int64_t at = begin; at < end;) {
        int64_t j = at % inner, n = least(least(COLUMNS, inner - j), end - at);
        add_columns(job, at / inner, j, n);
        at += n;
    }
}

KERNEL(reduce) {
    extents e;
    extents_of(launch->step, &e);
    if (e.inner > 1) {
        column_job job = {launch, e, tpi_scratch(launch)};
        int64_t grain = most(round_up(ceil_div(16384, e.reduced), 16), 16);
        tpi_parallel_for(launch->threads, e.outer * e.inner, grain, run_columns, &job);
        return TP_OK;
    }
    row_pieces p = {launch, e.reduced, piece_length(launch->step, &e), 1, tpi_scratch(launch), NULL};
    p.per_row = ceil_div(e.reduced, p.length);
    p.space = p.partial + e.outer * p.per_row;
    tpi_parallel_for(launch->threads, e.outer * p.per_row, ceil_div(8192, p.length), run_pieces, &p);
    if (launch->step->op != TPI_ARGMAX) join_pieces(&p, e.outer);
    return TP_OK;
}
