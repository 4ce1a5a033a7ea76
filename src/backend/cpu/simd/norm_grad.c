/* Gradients of rms_norm and layer_norm.
 *
 * With x̂ the normalised row and g = dy·weight: dx = (g - mean(g) - x̂·mean(g·x̂)) / σ, without the middle term
 * for rms_norm; dweight = Σ rows dy·x̂, dbias = Σ rows dy. Each thread adds up its rows' share of the latter
 * two in its own buffers; the shares are added in order at the end. */
#include "backend/cpu/simd/row.h"

enum { X, DY, DX, WEIGHT, DWEIGHT, DBIAS, BUFFERS };

ACCEPTS(norm_grad_accepts) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    if (!tpi_all_contiguous_floats(step) || x->rank < 1 || tpi_row_length(x) == 0) return false;
    return step->n_in == 2 || tpi_in_operand(step, 2)->count == tpi_row_length(x);
}
SCRATCH(norm_grad_scratch) {
    return TPI_SIMD(row_scratch)(tpi_row_length(tpi_in_operand(step, 0)), BUFFERS, threads);
}

/* Mean (0 for rms_norm) and 1/σ of a row. */
static float statistics(const float *x, int64_t n, bool centred, double eps, float *mean) {
    float sum = 0.0f, squares;
    if (centred) ROW_SUM(sum, n, { term = row_get(x, i, part); });
    *mean = sum / (float)n;
    vf m = v_set(*mean);
    ROW_SUM(squares, n, {
        vf d = row_get(x, i, part) - m;
        if (part < VW) d = v_keep(d, part);
        term = d * d;
    });
    return (float)(1.0 / sqrt((double)squares / (double)n + eps));
}

static void grad_row(const float *x, const float *dy, const float *weight, int64_t n, bool centred,
                     float mean, float r, float *dx) {
    float g_sum = 0.0f, gx_sum;
    vf m = v_set(mean), scale = v_set(r);
    if (centred) {
        ROW_SUM(g_sum, n, {
            term = row_get(dy, i, part);
            if (weight) term = term * row_get(weight, i, part);
        });
    }
    ROW_SUM(gx_sum, n, {
        vf g = row_get(dy, i, part);
        if (weight) g = g * row_get(weight, i, part);
        term = g * (row_get(x, i, part) - m);
    });
    vf a = v_set(g_sum / (float)n), b = v_set(gx_sum * r * r / (float)n);
    FOR_VECTORS(i, part, n) {
        vf g = row_get(dy, i, part);
        if (weight) g = g * row_get(weight, i, part);
        v_put(dx, TP_F32, i, (g - a - (row_get(x, i, part) - m) * b) * scale, part);
    }
}

/* The thread's share of dweight and dbias grows by a row. */
INLINE void add_share(const row_range *range, const float *x, const float *dy, bool centred, float mean,
                      float r) {
    float *dweight = row_buffer(range, DWEIGHT), *dbias = row_buffer(range, DBIAS);
    vf m = v_set(mean), scale = v_set(r);
    FOR_VECTORS(i, part, range->n) {
        vf d = row_get(dy, i, part), hat = (row_get(x, i, part) - m) * scale;
        v_put(dweight, TP_F32, i, v_fma(d, hat, row_get(dweight, i, part)), part);
        if (centred) v_put(dbias, TP_F32, i, d + row_get(dbias, i, part), part);
    }
}

/* With frozen weights nobody wants their gradients. */
static bool wants_shares(const tpi_launch *launch) {
    return tpi_out(launch, 1) || (launch->step->n_out > 2 && tpi_out(launch, 2));
}

static void grad_rows(const row_range *range) {
    const tpi_step *step = range->launch->step;
    const tpi_attr_norm *attr = step->attr;
    bool centred = step->op == TPI_LAYER_NORM_GRAD;
    const float *weight = step->n_in > 2 ? row_in(range, 2, 0, WEIGHT) : NULL;
    bool shares = wants_shares(range->launch);
    int64_t n = range->n;
    float mean;
    if (shares) {
        memset(row_buffer(range, DWEIGHT), 0, (size_t)n * sizeof(float));
        memset(row_buffer(range, DBIAS), 0, (size_t)n * sizeof(float));
    }
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, X), *dy = row_in(range, 1, row, DY);
        float r = statistics(x, n, centred, attr->eps, &mean);
        if (shares) add_share(range, x, dy, centred, mean, r);
        if (!tpi_out(range->launch, 0)) continue;
        grad_row(x, dy, weight, n, centred, mean, r, row_out(range, 0, row, DX));
        row_done(range, 0, row, DX);
    }
}

/* Output k = the threads' buffers b, added in order. */
static void add_shares(const tpi_launch *launch, int k, int b, int shares, int64_t n) {
    void *out = tpi_out(launch, k);
    if (!out) return;
    size_t pitch = TPI_SIMD(row_scratch)(n, 1, 1) / sizeof(float);
    float *total = (float *)tpi_scratch(launch) + pitch * (size_t)b;
    for (int s = 1; s < shares; s++) {
        const float *share = total + pitch * BUFFERS * (size_t)s;
        FOR_VECTORS(i, part, n)
        v_put(total, TP_F32, i, row_get(total, i, part) + row_get(share, i, part), part);
    }
    TPI_SIMD(from_f32)(total, out, tpi_out_operand(launch->step, k)->dtype, 0, n);
}

KERNEL(norm_grad) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    int64_t n = tpi_row_length(x);
    int shares = TPI_SIMD(for_rows)(launch, tpi_row_count(x), n, BUFFERS, grad_rows);
    add_shares(launch, 1, DWEIGHT, shares, n);
    if (launch->step->op == TPI_LAYER_NORM_GRAD) add_shares(launch, 2, DBIAS, shares, n);
    return TP_OK;
}
