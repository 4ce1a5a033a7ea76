/* Transformer layers but attention and losses, by the formulas of their papers (named in taper/ops.h), one
 * row at a time. */
#include "backend/cpu/reference.h"
#include "core/random.h"

#include <math.h>

static double norm_eps(const tpi_step *step) {
    return ((const tpi_attr_norm *)step->attr)->eps;
}

/* Rows along the last dimension of the first `n_in` inputs and of output 0, in this order. */
static tpi_walk walk_rows(const tpi_launch *launch, int n_in) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    tpi_walk walk;
    tpi_walk_init(&walk, x->rank, x->shape, -1);
    for (int k = 0; k < n_in; k++) tpi_walk_add(&walk, tpi_in_operand(launch->step, k), tpi_in(launch, k), 0);
    tpi_walk_add(&walk, tpi_out_operand(launch->step, 0), tpi_out(launch, 0), 0);
    return walk;
}

static void split_rows(const tpi_launch *launch, tpi_rows_fn fn) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    if (x->count == 0) return;
    int64_t length = x->rank ? x->shape[x->rank - 1] : 1;
    tpi_for_rows(launch, x->count / length, length, fn);
}

/* Input k as a weight over the last dimension; ones where the step has no such input. */
static tpi_vec weight_or_one(const tpi_launch *launch, int k) {
    static const float one = 1;
    if (k >= launch->step->n_in) return (tpi_vec){(void *)&one, TP_F32, 0, 0};
    return tpi_vec_of(tpi_in_operand(launch->step, k), tpi_in(launch, k));
}

/* ---- both gradients of silu(gate)·up ---- */

static void silu_mul_grad_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_walk walk = walk_rows(launch, 3);
    if (launch->step->n_out > 1) tpi_walk_add(&walk, tpi_out_operand(launch->step, 1), tpi_out(launch, 1), 0);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++) {
            const double x = tpi_get(walk.at[0], i), up = tpi_get(walk.at[1], i), dy = tpi_get(walk.at[2], i);
            tpi_put(walk.at[3], i, tpi_pointwise_eval(TPI_SILU_GRAD, 0, x, dy * up, 0, 0));
            tpi_put(walk.at[4], i, dy * tpi_pointwise_eval(TPI_SILU, 0, x, 0, 0, 0));
        }
}

static tp_status silu_mul_grad(const tpi_launch *launch) {
    split_rows(launch, silu_mul_grad_rows);
    return TP_OK;
}

/* ---- RMS norm: y = x·r·w with r = 1/√(mean(x²) + eps) ---- */

static double inverse_rms(tpi_vec x, int64_t n, double eps) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += tpi_get(x, i) * tpi_get(x, i);
    return 1 / sqrt(sum / (double)n + eps);
}

static void rms_norm_row(tpi_vec x, tpi_vec weight, tpi_vec y, int64_t n, double eps) {
    double r = inverse_rms(x, n, eps);
    for (int64_t i = 0; i < n; i++) tpi_put(y, i, tpi_get(x, i) * r * tpi_get(weight, i));
}

static void rms_norm_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_walk walk = walk_rows(launch, 1);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        rms_norm_row(walk.at[0], weight_or_one(launch, 1), walk.at[1], walk.length, norm_eps(launch->step));
}

static tp_status rms_norm(const tpi_launch *launch) {
    split_rows(launch, rms_norm_rows);
    return TP_OK;
}

/* The sum is rounded to its dtype before it is normed, as if it had been computed by itself. */
static void add_rms_norm_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_operand *sum_operand = tpi_out_operand(launch->step, 1);
    tp_dtype dtype = (tp_dtype)tpi_in_operand(launch->step, 0)->dtype; /* the sum may be unwanted */
    tpi_vec weight = weight_or_one(launch, 2);
    tpi_walk walk = walk_rows(launch, 2);
    tpi_walk_add(&walk, sum_operand, tpi_out(launch, 1), 0);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        tpi_vec a = walk.at[0], b = walk.at[1], y = walk.at[2], sum = walk.at[3];
        double squares = 0;
        for (int64_t i = 0; i < walk.length; i++) {
            double s = tpi_rounded(dtype, tpi_get(a, i) + tpi_get(b, i));
            squares += s * s;
        }
        double r = 1 / sqrt(squares / (double)walk.length + norm_eps(launch->step));
        for (int64_t i = 0; i < walk.length; i++) {
            double s = tpi_rounded(dtype, tpi_get(a, i) + tpi_get(b, i));
            tpi_put(sum, i, s);
            tpi_put(y, i, s * r * tpi_get(weight, i));
        }
    }
}

static tp_status add_rms_norm(const tpi_launch *launch) {
    split_rows(launch, add_rms_norm_rows);
    return TP_OK;
}

/* ---- norms' gradients: scratch holds mean and r of each row, for the sums over rows that follow ---- */

static size_t two_doubles_a_row(const tpi_step *step, int threads) {
    (void)threads;
    const tpi_operand *x = tpi_in_operand(step, 0);
    int64_t length = x->rank ? x->shape[x->rank - 1] : 1;
    int64_t rows = length ? x->count / length : 0;
    return (size_t)(2 * rows + 1) * sizeof(double); /* never 0, so that there is a scratch slot */
}

static void moments(tpi_vec x, int64_t n, double eps, double *mean, double *r) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += tpi_get(x, i);
    *mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) squares += (tpi_get(x, i) - *mean) * (tpi_get(x, i) - *mean);
    *r = 1 / sqrt(squares / (double)n + eps);
}

/* With x̂ = (x - mean)·r and g = dy·w: dx = r·(g - mean(g) - x̂·mean(g·x̂)). RMS norm has no means: 0 for
 * mean and for mean(g). */
static void norm_grad_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    bool centred = launch->step->op == TPI_LAYER_NORM_GRAD;
    double eps = norm_eps(launch->step), *saved = tpi_scratch(launch);
    tpi_vec weight = weight_or_one(launch, 2);
    tpi_walk walk = walk_rows(launch, 2);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        tpi_vec x = walk.at[0], dy = walk.at[1], dx = walk.at[2];
        double mean = 0, r, g_sum = 0, gx_sum = 0, n = (double)walk.length;
        if (centred)
            moments(x, walk.length, eps, &mean, &r);
        else
            r = inverse_rms(x, walk.length, eps);
        for (int64_t i = 0; i < walk.length; i++) {
            double g = tpi_get(dy, i) * tpi_get(weight, i);
            g_sum += centred ? g : 0;
            gx_sum += g * (tpi_get(x, i) - mean) * r;
        }
        for (int64_t i = 0; i < walk.length; i++) {
            double g = tpi_get(dy, i) * tpi_get(weight, i), normed = (tpi_get(x, i) - mean) * r;
            tpi_put(dx, i, r * (g - g_sum / n - normed * gx_sum / n));
        }
        saved[2 * row] = mean;
        saved[2 * row + 1] = r;
    }
}

/* Output k as a vector over the last dimension; one without memory where there is none or it is not wanted.
 */
static tpi_vec weight_out(const tpi_launch *launch, int k) {
    if (k >= launch->step->n_out) return (tpi_vec){0};
    return tpi_vec_of(tpi_out_operand(launch->step, k), tpi_out(launch, k));
}

/* dw = Σ dy·x̂ and dbias = Σ dy over the rows, for features begin ... end-1. */
static void norm_grad_weights(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const double *saved = tpi_scratch(launch);
    tpi_vec dw = weight_out(launch, 1), dbias = weight_out(launch, 2);
    for (int64_t i = begin; i < end; i++) {
        double dw_sum = 0, dbias_sum = 0;
        tpi_walk walk = walk_rows(launch, 2);
        for (int64_t row = 0; row < walk.rows; row++, tpi_walk_next(&walk)) {
            double dy = tpi_get(walk.at[1], i);
            dw_sum += dy * (tpi_get(walk.at[0], i) - saved[2 * row]) * saved[2 * row + 1];
            dbias_sum += dy;
        }
        tpi_put(dw, i, dw_sum);
        tpi_put(dbias, i, dbias_sum);
    }
}

static tp_status norm_grad(const tpi_launch *launch) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    int64_t length = x->rank ? x->shape[x->rank - 1] : 1;
    split_rows(launch, norm_grad_rows);
    if (weight_out(launch, 1).data || weight_out(launch, 2).data)
        tpi_for_rows(launch, length, length ? x->count / length : 0, norm_grad_weights);
    return TP_OK;
}

/* ---- layer norm ---- */

static void layer_norm_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_vec weight = weight_or_one(launch, 1), bias = weight_or_one(launch, 2);
    bool has_bias = launch->step->n_in > 2;
    tpi_walk walk = walk_rows(launch, 1);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        double mean, r;
        moments(walk.at[0], walk.length, norm_eps(launch->step), &mean, &r);
        for (int64_t i = 0; i < walk.length; i++) {
            double normed = (tpi_get(walk.at[0], i) - mean) * r;
            tpi_put(walk.at[1], i, normed * tpi_get(weight, i) + (has_bias ? tpi_get(bias, i) : 0));
        }
    }
}

static tp_status layer_norm(const tpi_launch *launch) {
    split_rows(launch, layer_norm_rows);
    return TP_OK;
}

/* ---- rotary embedding ---- */

/* x [B, T, H, D], positions [B, T], frequencies [R]: features (i, j) turn by position·frequency[i], with j =
 * i + R or, interleaved, the pair (2i, 2i + 1); what is beyond 2R is copied. The angle is a product in f32.
 */
static void rope_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_attr_rope *attr = launch->step->attr;
    const tpi_operand *positions = tpi_in_operand(launch->step, 1),
                      *frequencies = tpi_in_operand(launch->step, 2);
    bool half = attr->layout == TP_ROPE_HALF;
    int64_t turned = frequencies->shape[0], heads = tpi_in_operand(launch->step, 0)->shape[2];
    tpi_vec frequency = tpi_vec_of(frequencies, tpi_in(launch, 2));
    tpi_walk walk = walk_rows(launch, 1);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        tpi_vec x = walk.at[0], y = walk.at[1];
        int32_t position = ((const int32_t *)tpi_in(launch, 1))[tpi_operand_offset(positions, row / heads)];
        for (int64_t i = 0; i < turned; i++) {
            int64_t first = half ? i : 2 * i, second = half ? i + turned : 2 * i + 1;
            double angle = (double)((float)position * (float)tpi_get(frequency, i));
            double c = cos(angle), s = attr->inverse ? -sin(angle) : sin(angle);
            double u = tpi_get(x, first), v = tpi_get(x, second);
            tpi_put(y, first, u * c - v * s);
            tpi_put(y, second, u * s + v * c);
        }
        for (int64_t i = 2 * turned; i < walk.length; i++) tpi_put(y, i, tpi_get(x, i));
    }
}

static tp_status rope(const tpi_launch *launch) {
    split_rows(launch, rope_rows);
    return TP_OK;
}

/* ---- dropout ---- */

static void dropout_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_attr_dropout *attr = launch->step->attr;
    tpi_vec seed = tpi_vec_of(tpi_in_operand(launch->step, 1), tpi_in(launch, 1));
    const uint32_t key[2] = {(uint32_t)tpi_get_i32(seed, 0), (uint32_t)tpi_get_i32(seed, 1)};
    tpi_walk walk = walk_rows(launch, 1);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++) {
            uint64_t element = (uint64_t)(row * walk.length + i);
            const uint32_t counter[4] = {(uint32_t)element, (uint32_t)(element >> 32), (uint32_t)attr->stream,
                                         (uint32_t)(attr->stream >> 32)};
            uint32_t random[4];
            tpi_philox(key, counter, random);
            bool dropped = (double)tpi_uniform(random[0]) < attr->rate;
            tpi_put(walk.at[1], i, dropped ? 0 : tpi_get(walk.at[0], i) / (1 - attr->rate));
        }
}

static tp_status dropout(const tpi_launch *launch) {
    split_rows(launch, dropout_rows);
    return TP_OK;
}

/* ---- AdamW ---- */

/* m ← β1·m + (1-β1)·g; v ← β2·v + (1-β2)·g²; p ← p - lr·(m̂/(√v̂ + eps) + decay·p), with m̂, v̂ divided by
 * 1 - β^t. A gradient scale that is not finite leaves all three as they are. */
static void adamw_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_attr_adamw *attr = launch->step->attr;
    tpi_vec step = tpi_vec_of(tpi_in_operand(launch->step, 4), tpi_in(launch, 4));
    double rate = tpi_get(step, 0), correction1 = tpi_get(step, 1), correction2 = tpi_get(step, 2);
    double scale = tpi_get(tpi_cell(launch, 5, 0), 0);
    bool skip = !isfinite(scale);
    tpi_walk walk = walk_rows(launch, 4);
    for (int k = 1; k < 3; k++) tpi_walk_add(&walk, tpi_out_operand(launch->step, k), tpi_out(launch, k), 0);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++) {
            double p = tpi_get(walk.at[0], i), m = tpi_get(walk.at[1], i), v = tpi_get(walk.at[2], i);
            double g = tpi_get(walk.at[3], i) * scale;
            if (!skip) {
                m = attr->beta1 * m + (1 - attr->beta1) * g;
                v = attr->beta2 * v + (1 - attr->beta2) * g * g;
                double direction = m / correction1 / (sqrt(v / correction2) + attr->eps);
                p -= rate * (direction + attr->weight_decay * p);
            }
            tpi_put(walk.at[4], i, p);
            tpi_put(walk.at[5], i, m);
            tpi_put(walk.at[6], i, v);
        }
}

static tp_status adamw(const tpi_launch *launch) {
    split_rows(launch, adamw_rows);
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_nn[] = {
    {TPI_SILU_MUL_GRAD, {"reference", silu_mul_grad, NULL, NULL}},
    {TPI_RMS_NORM, {"reference", rms_norm, NULL, NULL}},
    {TPI_RMS_NORM_GRAD, {"reference", norm_grad, NULL, two_doubles_a_row}},
    {TPI_ADD_RMS_NORM, {"reference", add_rms_norm, NULL, NULL}},
    {TPI_LAYER_NORM, {"reference", layer_norm, NULL, NULL}},
    {TPI_LAYER_NORM_GRAD, {"reference", norm_grad, NULL, two_doubles_a_row}},
    {TPI_ROPE, {"reference", rope, NULL, NULL}},
    {TPI_DROPOUT, {"reference", dropout, NULL, NULL}},
    {TPI_ADAMW, {"reference", adamw, NULL, NULL}},
    TPI_KERNELS_END,
};
