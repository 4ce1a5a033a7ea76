/* softmax and rms_norm in the terms of the plan that the project began from: lazy against eager, stability,
 * every dimension, rows of -inf, chains with matmul, gradients. */
#include "engine_helpers.h"

ENGINE_SUITE(softmax);
ENGINE_SUITE(rms_norm);

#define CLOSE 1e-5

/* Evaluates the lazy value and compares it with the eager one; both are released. */
static void expect_equal(tp_lazy *lazy, tp_tensor *eager) {
    tp_tensor *out = evaluate(lazy);
    cr_assert_lt(largest_difference(out, eager), CLOSE);
    tp_tensor_release(out), tp_tensor_release(eager);
}

/* The gradient of Σ weights · f(x) against central differences in x. */
static void expect_gradient(tp_lazy *(*f)(tp_lazy *x), int rank, const int64_t *shape) {
    tp_tensor *x = random_tensor(rank, shape, 1), *weights = random_tensor(rank, shape, 2), *grad_out, *value;
    tp_lazy *leaf = tp_lazy_from_tensor(g, x), *grad;
    tp_lazy *loss = tp_lazy_sum(tp_lazy_mul(f(leaf), tp_lazy_from_tensor(g, weights)), TP_ALL_DIMS, false);
    must(tp_graph_grad(g, loss, &leaf, 1, &grad));
    must(tp_lazy_eval(grad, &grad_out));
    float *gradient = values_of(grad_out), *values = values_of(x);
    size_t bytes = (size_t)tp_tensor_count(x) * sizeof(float);
    for (int64_t i = 0; i < tp_tensor_count(x); i++) {
        const float step = 1e-2f, middle = values[i];
        double sums[2];
        for (int side = 0; side < 2; side++) {
            tp_graph_reset(g);
            values[i] = middle + (side ? step : -step);
            must(tp_tensor_write(x, values, bytes));
            must(tp_lazy_eval(tp_lazy_mul(f(tp_lazy_from_tensor(g, x)), tp_lazy_from_tensor(g, weights)),
                              &value));
            float *terms = values_of(value);
            sums[side] = 0;
            for (int64_t j = 0; j < tp_tensor_count(x); j++) sums[side] += (double)terms[j];
            free(terms);
            tp_tensor_release(value);
        }
        values[i] = middle;
        double slope = (sums[1] - sums[0]) / (2 * (double)step);
        cr_assert(fabs((double)gradient[i] - slope) < 2e-3 * (1 + fabs(slope)),
                  "element %lld: %g, differences %g", (long long)i, (double)gradient[i], slope);
    }
    free(gradient), free(values);
    tp_tensor_release(x), tp_tensor_release(weights), tp_tensor_release(grad_out);
}

/* ---- softmax ---- */

Test(softmax, lazy_vs_eager_over_every_dimension) {
    tp_tensor *x = random_tensor(4, SHAPE(3, 5, 2, 33), 1), *eager;
    for (int dim = -4; dim < 4; dim++) {
        must(tp_tensor_softmax(x, dim, &eager));
        tp_lazy *y = tp_lazy_softmax(tp_lazy_from_tensor(g, x), dim);
        tp_tensor *sums = evaluate(tp_lazy_sum(y, dim, false));
        float *ones = values_of(sums);
        for (int64_t i = 0; i < tp_tensor_count(sums); i++) cr_assert_float_eq((double)ones[i], 1, CLOSE);
        free(ones);
        tp_tensor_release(sums);
        expect_equal(y, eager);
    }
    cr_assert_null(tp_lazy_softmax(tp_lazy_from_tensor(g, x), 4));
    must_fail(tp_graph_status(g), TP_EINVAL, "dimension 4");
    tp_tensor_release(x);
}

Test(softmax, is_stable_far_out) {
    tp_tensor *out = evaluate(tp_lazy_softmax(vector4(1e4f, 1e4f, -1e4f, 9999), 0));
    double e = exp(-1.0), total = 2 + e;
    expect4(out, (float)(1 / total), (float)(1 / total), 0, (float)(e / total));
    tp_tensor_release(out);
    out = evaluate(tp_lazy_softmax(vector4(-1e4f, -1e4f, -1e4f, -1e4f), 0));
    expect4(out, 0.25f, 0.25f, 0.25f, 0.25f);
    tp_tensor_release(out);
}

Test(softmax, rows_of_minus_infinity_give_zeros) {
    tp_lazy *x = leaf_of(tensor_of(
        2, SHAPE(3, 3), (float[]){-INFINITY, -INFINITY, -INFINITY, 1, -INFINITY, 1, 0, 0, -INFINITY}));
    tp_tensor *rows = evaluate(tp_lazy_softmax(x, 1)), *columns = evaluate(tp_lazy_softmax(x, 0));
    expect_values(rows, (float[]){0, 0, 0, 0.5f, 0, 0.5f, 0.5f, 0.5f, 0}, 1e-6);
    float a = (float)(exp(1) / (exp(1) + 1));
    expect_values(columns, (float[]){0, 0, 0, a, 0, 1, 1 - a, 1, 0}, 1e-6);
    tp_tensor_release(rows), tp_tensor_release(columns);
}

static tp_lazy *softmax_rows(tp_lazy *x) {
    return tp_lazy_softmax(x, -1);
}
static tp_lazy *softmax_columns(tp_lazy *x) {
    return tp_lazy_softmax(x, 0);
}

Test(softmax, gradients) {
    expect_gradient(softmax_rows, 2, SHAPE(3, 7));
    tp_graph_reset(g);
    expect_gradient(softmax_columns, 2, SHAPE(5, 3));
}

/* ---- rms_norm ---- */

Test(rms_norm, lazy_vs_eager_and_by_definition) {
    static const double epsilons[] = {1e-6, 1e-5, 1e-3, 0.5};
    tp_tensor *x = random_tensor(3, SHAPE(4, 3, 40), 1), *weight = random_tensor(1, SHAPE(40), 2), *eager;
    float *in = values_of(x), *scale = values_of(weight);
    for (int e = 0; e < 4; e++)
        for (int weighted = 0; weighted < 2; weighted++) {
            tp_lazy *w = weighted ? tp_lazy_from_tensor(g, weight) : NULL;
            tp_lazy *y = tp_lazy_rms_norm(tp_lazy_from_tensor(g, x), w, epsilons[e]);
            must(tp_tensor_rms_norm(x, weighted ? weight : NULL, epsilons[e], &eager));
            float *out = values_of(eager);
            for (int row = 0; row < 12; row++) {
                double squares = 0;
                for (int i = 0; i < 40; i++) squares += (double)in[row * 40 + i] * (double)in[row * 40 + i];
                for (int i = 0; i < 40; i++)
                    cr_assert_float_eq((double)out[row * 40 + i],
                                       (double)in[row * 40 + i] / sqrt(squares / 40 + epsilons[e]) *
                                           (weighted ? (double)scale[i] : 1),
                                       CLOSE);
            }
            free(out);
            expect_equal(y, eager);
        }
    free(in), free(scale);
    tp_tensor_release(x), tp_tensor_release(weight);
}

Test(rms_norm, in_a_chain_with_matmul) {
    tp_tensor *x = random_tensor(2, SHAPE(16, 24), 1), *w = random_tensor(2, SHAPE(24, 24), 2);
    tp_tensor *weight = random_tensor(1, SHAPE(24), 3), *a, *b, *c;
    must(tp_tensor_matmul(x, w, &a));
    must(tp_tensor_rms_norm(a, weight, 1e-5, &b));
    must(tp_tensor_matmul(b, w, &c));
    tp_tensor_release(a), tp_tensor_release(b);
    must(tp_tensor_rms_norm(c, NULL, 1e-5, &a));
    tp_lazy *h = tp_lazy_from_tensor(g, x), *m = tp_lazy_from_tensor(g, w);
    h = tp_lazy_rms_norm(tp_lazy_matmul(h, m), tp_lazy_from_tensor(g, weight), 1e-5);
    expect_equal(tp_lazy_rms_norm(tp_lazy_matmul(h, m), NULL, 1e-5), a);
    tp_tensor_release(c), tp_tensor_release(x), tp_tensor_release(w), tp_tensor_release(weight);
}

Test(rms_norm, refuses_what_does_not_fit) {
    cr_assert_null(tp_lazy_rms_norm(random_leaf(2, SHAPE(2, 4), 1), random_leaf(1, SHAPE(5), 2), 1e-5));
    must_fail(tp_graph_status(g), TP_ESHAPE, "rms_norm (call 2): weight has shape [5], expected [4]");
    tp_graph_reset(g);
    cr_assert_null(tp_lazy_rms_norm(random_leaf(2, SHAPE(2, 4), 1), NULL, -1));
    must_fail(tp_graph_status(g), TP_EINVAL, "eps is -1");
}

static tp_lazy *plain_norm(tp_lazy *x) {
    return tp_lazy_rms_norm(x, NULL, 1e-2);
}
static tp_lazy *weighted_norm(tp_lazy *x) {
    return tp_lazy_rms_norm(x, random_leaf(1, SHAPE(6), 7), 1e-5);
}

Test(rms_norm, gradients) {
    expect_gradient(plain_norm, 2, SHAPE(4, 6));
    tp_graph_reset(g);
    expect_gradient(weighted_norm, 2, SHAPE(4, 6));
}

Test(rms_norm, gradient_of_the_weight) {
    tp_tensor *x = random_tensor(2, SHAPE(5, 6), 1), *w = random_tensor(1, SHAPE(6), 2), *out, *plain;
    tp_lazy *weight = tp_lazy_from_tensor(g, w), *grad;
    tp_lazy *y = tp_lazy_rms_norm(tp_lazy_from_tensor(g, x), weight, 1e-5);
    must(tp_graph_grad(g, tp_lazy_sum(y, TP_ALL_DIMS, false), &weight, 1, &grad));
    must(tp_lazy_eval(grad, &out));
    must(tp_tensor_rms_norm(x, NULL, 1e-5, &plain));
    float *rows = values_of(plain), expected[6] = {0};
    for (int i = 0; i < 30; i++) expected[i % 6] += rows[i];
    expect_values(out, expected, CLOSE);
    free(rows);
    tp_tensor_release(x), tp_tensor_release(w), tp_tensor_release(out), tp_tensor_release(plain);
}
