/* softmax and its gradient over any dimension.
 *
 * Over the last one a row is read from memory once: its maximum, the exponentials and their sum, and the
 * scaling are three passes over what is by then near; the third joins the next row's second. Over another
 * dimension the lanes of a vector are neighbouring sums; the trick is one reading pass for maximum and sum
 * together, in which a sum is scaled down when a block of steps raises its maximum (Milakov and Gimelshein
 * 2018). */
#include "backend/cpu/simd/row.h"

#define BUFFERS 4

#define SPAN 1024 /* sums side by side: their state stays in the first cache */
#define BLOCK                                                                                                \
    8 /* steps along the dimension between two scalings: rows a page apart share a set of the cache */

static bool last_dim(const tpi_step *step) {
    const tpi_attr_dim *attr = step->attr;
    return attr->dim == tpi_in_operand(step, 0)->rank - 1;
}

ACCEPTS(softmax_accepts) {
    return tpi_all_contiguous_floats(step) && tpi_in_operand(step, 0)->rank >= 1;
}
SCRATCH(softmax_scratch) {
    return TPI_SIMD(row_scratch)(tpi_row_length(tpi_in_operand(step, 0)), BUFFERS, threads);
}

/* A row whose exponentials are known and are still to be scaled and written. */
typedef struct pending {
    const float *e;
    float *y;
    vf scale;
    bool stream;
} pending;

INLINE void write_part(const pending *p, int64_t i, int64_t part) {
    row_put(p->y, i, row_get(p->e, i, part) * p->scale, part, p->stream);
}

/* e = exp(x - top); their sum. Meanwhile writes the row before, if there is one, and fetches the next. */
static float exponentials(const float *x, float *e, int64_t n, float top, const pending *last,
                          const float *next) {
    const pending before = *last; /* which stores to rows cannot change */
    const vf shift = v_set(top);
    float sum;
    ROW_SUM(sum, n, {
        row_fetch(next, i);
        term = v_exp(row_get(x, i, part) - shift);
        if (part < VW) term = v_keep(term, part);
        v_put(e, TP_F32, i, term, part);
        if (before.e) write_part(&before, i, part);
    });
    return sum;
}

/* Row by row; a row is written while the next one's exponentials are computed, so that the memory works while
 * the arithmetic does. */
static void softmax_rows(const row_range *range) {
    pending before = {.stream = range->stream};
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, 0);
        float *e = row_buffer(range, 2 + (row & 1));
        float top = row_max(x, range->n);
        if (top == -INFINITY) /* nothing, or a NaN that the maximum passed over */
            top = 0.0f;
        float sum = exponentials(x, e, range->n, top, &before, row_next(range, 0, row));
        if (before.e) row_done(range, 0, row - 1, 1);
        before.e = e, before.y = row_out(range, 0, row, 1);
        before.scale = v_set(sum == 0.0f ? 0.0f : 1.0f / sum);
    }
    if (!before.e) return;
    FOR_VECTORS(i, part, range->n) write_part(&before, i, part);
    row_done(range, 0, range->end - 1, 1);
}

/* dx = y · (dy - Σ y·dy) */
static void softmax_grad_rows(const row_range *range) {
    const bool stream = range->stream;
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *y = row_in(range, 0, row, 0), *dy = row_in(range, 1, row, 1);
        float *dx = row_out(range, 0, row, 2), dot;
        ROW_SUM(dot, range->n, { term = row_get(y, i, part) * row_get(dy, i, part); });
        FOR_VECTORS(i, part, range->n) {
            row_put(dx, i, row_get(y, i, part) * (row_get(dy, i, part) - v_set(dot)), part, stream);
        }
        row_done(range, 0, row, 2);
    }
}

/* ---- over a dimension that is not the last: n steps, `inner` elements apart ---- */

typedef struct across {
    const tpi_launch *launch;
    int64_t n, inner;
    void (*columns)(const struct across *job, int64_t at, int64_t width);
} across;

static vf across_get(const across *job, int k, int64_t i, int64_t part) {
    return v_get(tpi_in(job->launch, k), tpi_in_operand(job->launch->step, k)->dtype, i, part);
}
static void across_put(const across *job, int64_t i, vf y, int64_t part) {
    v_put(tpi_out(job->launch, 0), tpi_out_operand(job->launch->step, 0)->dtype, i, y, part);
}

/* Steps [0, rows) from element `at`: raises top and scales sum down where the block demands it. */
static void add_block(const across *job, int64_t at, int64_t rows, int64_t part, float *top, float *sum) {
    vf old = v_load(top), high = old, total = v_set(0.0f);
    for (int64_t r = 0; r < rows; r++) high = v_max(across_get(job, 0, at + r * job->inner, part), high);
    vf base = v_blend(v_eq(high, v_set(-INFINITY)), v_set(0.0f), high);
    for (int64_t r = 0; r < rows; r++)
        total = total + v_exp(across_get(job, 0, at + r * job->inner, part) - base);
    v_store(top, high);
    v_store(sum, v_fma(v_load(sum), v_exp(old - base), total));
}

/* `width` ≤ SPAN sums side by side, the first element at `at`. */
static void softmax_columns(const across *job, int64_t at, int64_t width) {
    float top[SPAN], sum[SPAN];
    for (int64_t i = 0; i < width; i += VW) v_store(top + i, v_set(-INFINITY)), v_store(sum + i, v_set(0.0f));
    for (int64_t r = 0; r < job->n; r += BLOCK) FOR_VECTORS(i, part, width) {
            add_block(job, at + r * job->inner + i, least(BLOCK, job->n - r), part, top + i, sum + i);
        }
    for (int64_t i = 0; i < width; i += VW) {
        vf t = v_load(top + i), s = v_load(sum + i), zero = v_set(0.0f);
        v_store(top + i, v_blend(v_eq(t, v_set(-INFINITY)), zero, t));
        v_store(sum + i, v_blend(v_eq(s, zero), zero, v_set(1.0f) / s));
    }
    for (int64_t r = 0; r < job->n; r++, at += job->inner) FOR_VECTORS(i, part, width) {
            vf e = v_exp(across_get(job, 0, at + i, part) - v_load(top + i));
            across_put(job, at + i, e * v_load(sum + i), part);
        }
}

static void softmax_grad_columns(const across *job, int64_t at, int64_t width) {
    float dot[SPAN];
    for (int64_t i = 0; i < width; i += VW) v_store(dot + i, v_set(0.0f));
    for (int64_t r = 0, from = at; r < job->n; r++, from += job->inner) FOR_VECTORS(i, part, width) {
            vf y = across_get(job, 0, from + i, part), dy = across_get(job, 1, from + i, part);
            v_store(dot + i, v_fma(y, dy, v_load(dot + i)));
        }
    for (int64_t r = 0; r < job->n; r++, at += job->inner) FOR_VECTORS(i, part, width) {
            vf dy = across_get(job, 1, at + i, part) - v_load(dot + i);
            across_put(job, at + i, across_get(job, 0, at + i, part) * dy, part);
        }
}

/* Sums [begin, end), counted through the inner dimensions first. */
static void run_across(void *arg, int64_t begin, int64_t end) {
    const across *job = arg;
    while (begin < end) {
        int64_t outer = begin / job->inner, i = begin % job->inner;
        int64_t width = least(least(SPAN, job->inner - i), end - begin);
        job->columns(job, outer * job->n * job->inner + i, width);
        begin += width;
    }
}

static tp_status along(const tpi_launch *launch, row_fn *rows,
                       void (*columns)(const across *job, int64_t at, int64_t width)) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    const tpi_attr_dim *attr = launch->step->attr;
    if (!x->count) return TP_OK;
    if (last_dim(launch->step)) {
        TPI_SIMD(for_rows)(launch, tpi_row_count(x), tpi_row_length(x), BUFFERS, rows);
        return TP_OK;
    }
    across job = {launch, x->shape[attr->dim], 1, columns};
    for (int d = (int)attr->dim + 1; d < x->rank; d++) job.inner *= x->shape[d];
    tpi_parallel_for(launch->threads, x->count / job.n, most(VW, 8192 / job.n), run_across, &job);
    return TP_OK;
}

KERNEL(softmax) {
    return along(launch, softmax_rows, softmax_columns);
}

KERNEL(softmax_grad) {
    return along(launch, softmax_grad_rows, softmax_grad_columns);
}
