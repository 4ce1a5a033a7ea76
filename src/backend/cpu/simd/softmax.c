/* softmax, its gradient and logsumexp over the last dimension.
 *
 * A row is read from memory once: its maximum, the exponentials and their sum, and the scaling are three
 * passes over what is by then in the first cache. */
#include "backend/cpu/simd/row.h"

#define BUFFERS 3

static bool last_dim(const tpi_step *step, const tpi_operand *x) {
    const tpi_attr_dim *attr = step->attr;
    return x->rank >= 1 && attr->dim == x->rank - 1;
}

ACCEPTS(softmax_accepts) {
    return tpi_all_contiguous_floats(step) && last_dim(step, tpi_in_operand(step, 0));
}
SCRATCH(softmax_scratch) {
    return TPI_SIMD(row_scratch)(tpi_row_length(tpi_in_operand(step, 0)), BUFFERS, threads);
}

/* y = exp(x - top); their sum. Fetches the row `next` meanwhile. */
static float exponentials(const float *x, float *y, int64_t n, float top, const float *next) {
    float sum;
    ROW_SUM(sum, n, {
        row_fetch(next, i);
        vf e = v_exp(row_get(x, i, part) - v_set(top));
        if (part < VW) e = v_keep(e, part);
        v_put(y, TP_F32, i, e, part);
        term = e;
    });
    return sum;
}

static void softmax_rows(const row_range *range) {
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, 0);
        float *y = row_out(range, 0, row, 1), *e = row_buffer(range, 2);
        float top = row_max(x, range->n), sum = 0.0f;
        if (top == -INFINITY) /* nothing, or a NaN that the maximum passed over */
            top = 0.0f;
        sum = exponentials(x, e, range->n, top, row_next(range, 0, row));
        vf scale = v_set(sum == 0.0f ? 0.0f : 1.0f / sum);
        FOR_VECTORS(i, part, range->n) row_put(y, i, row_get(e, i, part) * scale, part, range->stream);
        row_done(range, 0, row, 1);
    }
}

KERNEL(softmax) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, tpi_row_count(x), tpi_row_length(x), BUFFERS, softmax_rows);
    return TP_OK;
}

/* dx = y · (dy - Σ y·dy) */
static void softmax_grad_rows(const row_range *range) {
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *y = row_in(range, 0, row, 0), *dy = row_in(range, 1, row, 1);
        float *dx = row_out(range, 0, row, 2), dot;
        ROW_SUM(dot, range->n, { term = row_get(y, i, part) * row_get(dy, i, part); });
        FOR_VECTORS(i, part, range->n) {
            row_put(dx, i, row_get(y, i, part) * (row_get(dy, i, part) - v_set(dot)), part, range->stream);
        }
        row_done(range, 0, row, 2);
    }
}

KERNEL(softmax_grad) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, tpi_row_count(x), tpi_row_length(x), BUFFERS, softmax_grad_rows);
    return TP_OK;
}
