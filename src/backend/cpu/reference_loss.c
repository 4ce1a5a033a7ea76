/* Cross entropy of logits and of a linear layer's outputs, by their definition, one row at a time. */
#include "backend/cpu/reference.h"

#include <math.h>
#include <string.h>

/* ---- labels: input `k` of the launch ---- */

static int32_t label_of(const tpi_launch *launch, int k, int64_t row) {
    return tpi_get_i32(tpi_cell(launch, k, row), 0);
}

static int64_t ignored_label(const tpi_step *step) {
    return ((const tpi_attr_ignore *)step->attr)->ignore;
}

static tp_status check_labels(const tpi_launch *launch, const char *name, int k, int64_t vocabulary) {
    int64_t ignore = ignored_label(launch->step);
    for (int64_t row = 0; row < tpi_in_operand(launch->step, k)->count; row++) {
        int64_t label = label_of(launch, k, row);
        if (label != ignore && (label < 0 || label >= vocabulary))
            return tpi_fail(TP_EINVAL, "%s: label %lld at position %lld is outside [0, %lld)", name,
                            (long long)label, (long long)row, (long long)vocabulary);
    }
    return TP_OK;
}

static double logsumexp(tpi_vec x, int64_t n) {
    double max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) max = tpi_get(x, i) > max ? tpi_get(x, i) : max;
    if (isinf(max)) return max;
    for (int64_t i = 0; i < n; i++) sum += exp(tpi_get(x, i) - max);
    return max + log(sum);
}

/* ---- of logits ---- */

static tpi_walk walk_logits(const tpi_launch *launch) {
    const tpi_operand *logits = tpi_in_operand(launch->step, 0);
    tpi_walk walk;
    tpi_walk_init(&walk, logits->rank, logits->shape, -1);
    tpi_walk_add(&walk, logits, tpi_in(launch, 0), 0);
    return walk;
}

static void cross_entropy_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    int64_t ignore = ignored_label(launch->step);
    tpi_walk walk = walk_logits(launch);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        double lse = logsumexp(walk.at[0], walk.length);
        int32_t label = label_of(launch, 1, row);
        tpi_put(tpi_cell(launch, 2, row), 0, label == ignore ? 0 : lse - tpi_get(walk.at[0], label));
        tpi_put(tpi_cell(launch, 3, row), 0, lse);
    }
}

static tp_status cross_entropy(const tpi_launch *launch) {
    const tpi_operand *logits = tpi_in_operand(launch->step, 0), *labels = tpi_in_operand(launch->step, 1);
    int64_t vocabulary = logits->shape[logits->rank - 1];
    TPI_TRY(check_labels(launch, "cross_entropy", 1, vocabulary));
    tpi_for_rows(launch, labels->count, vocabulary, cross_entropy_rows);
    return TP_OK;
}

/* dlogits = (softmax(logits) - onehot(label))·dloss */
static void cross_entropy_grad_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_walk walk = walk_logits(launch);
    tpi_walk_add(&walk, tpi_out_operand(launch->step, 0), tpi_out(launch, 0), 0);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        int32_t label = label_of(launch, 1, row);
        bool ignored = label == ignored_label(launch->step);
        double lse = tpi_get(tpi_cell(launch, 2, row), 0), dloss = tpi_get(tpi_cell(launch, 3, row), 0);
        for (int64_t i = 0; i < walk.length; i++) {
            double p = exp(tpi_get(walk.at[0], i) - lse);
            tpi_put(walk.at[1], i, ignored ? 0 : (p - (i == label)) * dloss);
        }
    }
}

static tp_status cross_entropy_grad(const tpi_launch *launch) {
    const tpi_operand *labels = tpi_in_operand(launch->step, 1), *x = tpi_in_operand(launch->step, 0);
    tpi_for_rows(launch, labels->count, x->shape[x->rank - 1], cross_entropy_grad_rows);
    return TP_OK;
}

/* ---- of h·w: inputs h [..., D], w [D, V], labels; a row of logits for each piece in scratch ---- */

static tpi_vec scratch_row(const tpi_launch *launch, int piece) {
    int64_t n = tpi_in_operand(launch->step, 1)->shape[1];
    return (tpi_vec){tpi_scratch(launch), TP_F32, piece * n, 1};
}

static size_t row_a_thread(const tpi_step *step, int threads) {
    return sizeof(float) * (size_t)tpi_in_operand(step, 1)->shape[1] * (size_t)threads;
}

static tpi_vec row_of_h(const tpi_launch *launch, int64_t row) {
    const tpi_operand *h = tpi_in_operand(launch->step, 0);
    int64_t d = h->shape[h->rank - 1], offset = d ? tpi_operand_offset(h, row * d) : 0;
    return (tpi_vec){(void *)tpi_in(launch, 0), (tp_dtype)h->dtype, offset, h->stride[h->rank - 1]};
}

/* Feature i's weights, one for each label. */
static tpi_vec row_of_w(const tpi_launch *launch, int64_t i) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1);
    return (tpi_vec){(void *)tpi_in(launch, 1), (tp_dtype)w->dtype, i * w->stride[0], w->stride[1]};
}

static void fill_logits(const tpi_launch *launch, int64_t row, tpi_vec logits) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1);
    tpi_vec h = row_of_h(launch, row);
    for (int64_t v = 0; v < w->shape[1]; v++) {
        double sum = 0;
        for (int64_t i = 0; i < w->shape[0]; i++) sum += tpi_get(h, i) * tpi_get(row_of_w(launch, i), v);
        tpi_put(logits, v, sum);
    }
}

/* The loss of a row that counts, its log-sum-exp, and dloss/dh = (softmax(logits) - onehot(label))·wᵀ. */
static void linear_loss_row(const tpi_launch *launch, int64_t row, int32_t label, tpi_vec logits) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1);
    fill_logits(launch, row, logits);
    double lse = logsumexp(logits, w->shape[1]);
    tpi_put(tpi_cell(launch, 3, row), 0, lse - tpi_get(logits, label));
    if (tpi_out(launch, 1)) tpi_put(tpi_cell(launch, 4, row), 0, lse);
    for (int64_t i = 0; i < w->shape[0] && tpi_out(launch, 2); i++) {
        double sum = 0;
        for (int64_t v = 0; v < w->shape[1]; v++)
            sum += (exp(tpi_get(logits, v) - lse) - (v == label)) * tpi_get(row_of_w(launch, i), v);
        tpi_put(tpi_cell(launch, 5, row * w->shape[0] + i), 0, sum);
    }
}

static void linear_loss_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    for (int64_t row = begin; row < end; row++) {
        int32_t label = label_of(launch, 2, row);
        if (label != ignored_label(launch->step))
            linear_loss_row(launch, row, label, scratch_row(launch, piece));
    }
}

tp_status tpi_begin_linear_cross_entropy(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1), *labels = tpi_in_operand(launch->step, 2);
    const int64_t floats[] = {1, 1, w->shape[0]}; /* of a row of each output */
    TPI_TRY(check_labels(launch, "linear_cross_entropy", 2, w->shape[1]));
    for (int64_t row = 0; row < labels->count; row++)
        for (int k = 0; k < 3 && label_of(launch, 2, row) == ignored_label(launch->step); k++)
            if (tpi_out(launch, k))
                memset((float *)tpi_out(launch, k) + row * floats[k], 0, sizeof(float) * (size_t)floats[k]);
    return TP_OK;
}

static tp_status linear_cross_entropy(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1), *labels = tpi_in_operand(launch->step, 2);
    TPI_TRY(tpi_begin_linear_cross_entropy(launch));
    tpi_for_rows(launch, labels->count, w->count, linear_loss_rows);
    return TP_OK;
}

/* dw = hᵀ·((softmax(logits) - onehot(label))·dloss), added up a row of h after the other. */
static tp_status linear_cross_entropy_grad(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1), *labels = tpi_in_operand(launch->step, 2);
    tpi_vec logits = scratch_row(launch, 0), dw = {tpi_out(launch, 0), TP_F32, 0, 1};
    int64_t n = w->shape[1];
    for (int64_t i = 0; i < w->count; i++) tpi_put(dw, i, 0);
    for (int64_t row = 0; row < labels->count; row++) {
        int32_t label = label_of(launch, 2, row);
        double lse = tpi_get(tpi_cell(launch, 3, row), 0), dloss = tpi_get(tpi_cell(launch, 4, row), 0);
        if (label == ignored_label(launch->step)) continue;
        fill_logits(launch, row, logits);
        tpi_vec h = row_of_h(launch, row);
        for (int64_t v = 0; v < n; v++) {
            double dlogit = (exp(tpi_get(logits, v) - lse) - (v == label)) * dloss;
            for (int64_t i = 0; i < w->shape[0]; i++)
                tpi_put(dw, i * n + v, tpi_get(dw, i * n + v) + tpi_get(h, i) * dlogit);
        }
    }
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_loss[] = {
    {TPI_CROSS_ENTROPY, {"reference", cross_entropy, NULL, NULL}},
    {TPI_CROSS_ENTROPY_GRAD, {"reference", cross_entropy_grad, NULL, NULL}},
    {TPI_LINEAR_CROSS_ENTROPY, {"reference", linear_cross_entropy, NULL, row_a_thread}},
    {TPI_LINEAR_CROSS_ENTROPY_GRAD, {"reference", linear_cross_entropy_grad, NULL, row_a_thread}},
    TPI_KERNELS_END,
};
