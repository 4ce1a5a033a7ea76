/* rms_norm, add_rms_norm and layer_norm over the last dimension.
 *
 * One pass over memory: a row's statistics are taken while it enters the first cache, the scaled row is
 * written from there. */
#include "backend/cpu/simd/row.h"

enum { X, SUM, Y, WEIGHT, BIAS, BUFFERS };

/* All contiguous floats of x's shape, but vectors of the last size from input `vectors` on. */
static bool rows_and_vectors(const tpi_step *step, int vectors) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    if (!tpi_all_contiguous_floats(step) || x->rank < 1 || tpi_row_length(x) == 0) return false;
    for (int k = 1; k < step->n_in; k++)
        if (tpi_in_operand(step, k)->count != (k < vectors ? x->count : tpi_row_length(x))) return false;
    return true;
}

ACCEPTS(norm_accepts) {
    return rows_and_vectors(step, step->op == TPI_ADD_RMS_NORM ? 2 : 1);
}
SCRATCH(norm_scratch) {
    return TPI_SIMD(row_scratch)(tpi_row_length(tpi_in_operand(step, 0)), BUFFERS, threads);
}

/* Input k, a vector, as f32; NULL if there is none. */
static const float *vector(const row_range *range, int k, int buffer) {
    return k < range->launch->step->n_in ? row_in(range, k, 0, buffer) : NULL;
}

static float inverse_rms(const float *x, int64_t n, double eps) {
    float squares;
    ROW_SUM(squares, n, {
        vf v = row_get(x, i, part);
        term = v * v;
    });
    return (float)(1.0 / sqrt((double)squares / (double)n + eps));
}

/* Fetches the row `next` meanwhile. */
static void scale_row(const row_range *range, const float *x, float r, const float *weight, float *y,
                      const float *next) {
    const vf scale = v_set(r);
    const bool stream = range->stream;
    if (weight) {
        FOR_VECTORS(i, part, range->n) {
            row_fetch(next, i);
            row_put(y, i, row_get(x, i, part) * scale * row_get(weight, i, part), part, stream);
        }
    } else {
        FOR_VECTORS(i, part, range->n) {
            row_fetch(next, i);
            row_put(y, i, row_get(x, i, part) * scale, part, stream);
        }
    }
}

static void rms_norm_rows(const row_range *range) {
    const tpi_attr_norm *attr = range->launch->step->attr;
    const float *weight = vector(range, 1, WEIGHT);
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, X);
        scale_row(range, x, inverse_rms(x, range->n, attr->eps), weight, row_out(range, 0, row, Y),
                  row_next(range, 0, row));
        row_done(range, 0, row, Y);
    }
}

KERNEL(rms_norm) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, tpi_row_count(x), tpi_row_length(x), BUFFERS, rms_norm_rows);
    return TP_OK;
}

/* The sum is rounded to its dtype before it is normalised, as the two operations apart would do. */
static void add_rms_norm_rows(const row_range *range) {
    const tpi_step *step = range->launch->step;
    const tpi_attr_norm *attr = step->attr;
    const tpi_operand *total = tpi_out_operand(step, 1);
    const float *weight = vector(range, 2, WEIGHT);
    void *kept = tpi_out(range->launch, 1);
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *a = row_in(range, 0, row, X), *b = row_in(range, 1, row, BIAS);
        float *sum = kept && total->dtype == TP_F32 ? row_out(range, 1, row, SUM) : row_buffer(range, SUM);
        FOR_VECTORS(i, part, range->n) v_put(sum, TP_F32, i, row_get(a, i, part) + row_get(b, i, part), part);
        if (kept) row_done(range, 1, row, SUM);
        if (kept && total->dtype != TP_F32)
            TPI_SIMD(to_f32)(kept, total->dtype, row * range->n, range->n, sum);
        scale_row(range, sum, inverse_rms(sum, range->n, attr->eps), weight, row_out(range, 0, row, Y), NULL);
        row_done(range, 0, row, Y);
    }
}

KERNEL(add_rms_norm) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, tpi_row_count(x), tpi_row_length(x), BUFFERS, add_rms_norm_rows);
    return TP_OK;
}

static void layer_norm_rows(const row_range *range) {
    const tpi_attr_norm *attr = range->launch->step->attr;
    const float *weight = vector(range, 1, WEIGHT), *bias = vector(range, 2, BIAS);
    const int64_t n = range->n;
    const bool stream = range->stream;
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, X);
        float *y = row_out(range, 0, row, Y), sum, squares;
        ROW_SUM(sum, n, { term = row_get(x, i, part); });
        vf mean = v_set(sum / (float)n);
        ROW_SUM(squares, n, {
            vf d = row_get(x, i, part) - mean;
            if (part < VW) d = v_keep(d, part);
            term = d * d;
        });
        vf scale = v_set((float)(1.0 / sqrt((double)squares / (double)n + attr->eps)));
        FOR_VECTORS(i, part, n) {
            vf v = (row_get(x, i, part) - mean) * scale;
            if (weight) v = v * row_get(weight, i, part);
            if (bias) v = v + row_get(bias, i, part);
            row_put(y, i, v, part, stream);
        }
        row_done(range, 0, row, Y);
    }
}

KERNEL(layer_norm) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, tpi_row_count(x), tpi_row_length(x), BUFFERS, layer_norm_rows);
    return TP_OK;
}
