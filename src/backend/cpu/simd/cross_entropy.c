/* Cross entropy and its gradient, a row of logits at a time.
 *
 * The logarithm of the sum of exponentials is kept from the forward pass, so the gradient is one exponential
 * an element, written over the logits where the plan lets it. */
#include "backend/cpu/simd/row.h"
#include "core/error.h"

enum { X, DX, BUFFERS };

ACCEPTS(cross_entropy_accepts) {
    const tpi_operand *logits = tpi_in_operand(step, 0), *labels = tpi_in_operand(step, 1);
    bool all = logits->contiguous && tpi_float_operand(logits) && logits->rank >= 1 && labels->contiguous;
    for (int k = 0; k < step->n_out; k++) {
        const tpi_operand *y = tpi_out_operand(step, k);
        all = all && y->contiguous &&
              (step->op == TPI_CROSS_ENTROPY_GRAD ? tpi_float_operand(y) : y->dtype == TP_F32);
    }
    if (step->op == TPI_CROSS_ENTROPY_GRAD) {
        const tpi_operand *lse = tpi_in_operand(step, 2), *dloss = tpi_in_operand(step, 3);
        all = all && lse->dtype == TP_F32 && lse->contiguous && dloss->dtype == TP_F32;
        bool uniform = true; /* a mean's gradient is one number for all rows */
        for (int d = 0; d < dloss->rank; d++)
            uniform = uniform && (dloss->stride[d] == 0 || dloss->shape[d] == 1);
        all = all && (dloss->contiguous || uniform);
    }
    return all && labels->dtype == TP_I32;
}
SCRATCH(cross_entropy_scratch) {
    return TPI_SIMD(row_scratch)(tpi_row_length(tpi_in_operand(step, 0)), BUFFERS, threads);
}

static int64_t ignored(const tpi_step *step) {
    return ((const tpi_attr_ignore *)step->attr)->ignore;
}

static void loss_rows(const row_range *range) {
    const int32_t *labels = tpi_in(range->launch, 1);
    float *losses = tpi_out(range->launch, 0), *lses = tpi_out(range->launch, 1);
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, X);
        float lse = TPI_SIMD(logsumexp_row)(x, range->n);
        if (losses) losses[row] = labels[row] == ignored(range->launch->step) ? 0.0f : lse - x[labels[row]];
        if (lses) lses[row] = lse;
    }
}

KERNEL(cross_entropy) {
    const tpi_operand *logits = tpi_in_operand(launch->step, 0);
    const int32_t *labels = tpi_in(launch, 1);
    int64_t rows = tpi_in_operand(launch->step, 1)->count, size = tpi_row_length(logits);
    for (int64_t row = 0; row < rows; row++)
        if (labels[row] != ignored(launch->step) && (labels[row] < 0 || labels[row] >= size))
            return tpi_fail(TP_EINVAL, "cross_entropy: label %lld at position %lld is outside [0, %lld)",
                            (long long)labels[row], (long long)row, (long long)size);
    TPI_SIMD(for_rows)(launch, rows, size, BUFFERS, loss_rows);
    return TP_OK;
}

/* dlogits = (softmax(logits) - onehot(label))·dloss */
static void grad_rows(const row_range *range) {
    const tpi_launch *launch = range->launch;
    const int32_t *labels = tpi_in(launch, 1);
    const float *lse = tpi_in(launch, 2), *dloss = tpi_in(launch, 3);
    bool each = tpi_in_operand(launch->step, 3)->contiguous;
    for (int64_t row = range->begin; row < range->end; row++) {
        const float *x = row_in(range, 0, row, X);
        float *dx = row_out(range, 0, row, DX), d = dloss[each ? row : 0];
        int64_t label = labels[row];
        if (label == ignored(launch->step)) {
            memset(dx, 0, sizeof(float) * (size_t)range->n);
        } else {
            vf top = v_set(lse[row]), scale = v_set(d);
            bool known = label >= 0 && label < range->n;
            float own = known ? x[label] : 0.0f;
            FOR_VECTORS(i, part, range->n) {
                v_put(dx, TP_F32, i, v_exp(row_get(x, i, part) - top) * scale, part);
            }
            if (known) dx[label] = expm1f(own - lse[row]) * d;
        }
        row_done(range, 0, row, DX);
    }
}

KERNEL(cross_entropy_grad) {
    const tpi_operand *logits = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, tpi_row_count(logits), tpi_row_length(logits), BUFFERS, grad_rows);
    return TP_OK;
}
