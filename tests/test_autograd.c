/* Gradients: every rule against finite differences, and against what ops.def says it reads; the walk's own
 * promises: masks, accumulation, zeros, errors, recompute segments, depth. */
#include "core/alloc.h"
#include "graph/graph.h"
#include "taper/ops.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#define MAX_INPUTS 5

static tp_context *ctx;
static tp_graph *g;
static tp_device *cpu;

static void set_up(void) {
    cr_assert_eq(tp_context_create(&ctx, NULL), TP_OK);
    cr_assert_eq(tp_graph_create(&g, ctx), TP_OK);
    cpu = tp_device_cpu(ctx);
}

static void tear_down(void) {
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
}

TestSuite(autograd, .init = set_up, .fini = tear_down);

static tp_tensor *uniform(int rank, const int64_t *shape, double low, double high, uint64_t seed) {
    tp_tensor *t;
    cr_assert_eq(tp_tensor_uniform(cpu, rank, shape, low, high, seed, &t), TP_OK);
    return t;
}

static tp_lazy *ints(int rank, const int64_t *shape, const int32_t *values) {
    return tp_lazy_from_slice(g, cpu, TP_I32, rank, shape, values);
}

#define INTS(n, ...) ints(1, (int64_t[]){n}, (int32_t[]){__VA_ARGS__})

/* ---- the cases: one operation each, the node that is returned ---- */

typedef struct grad_case {
    const char *name;
    tp_lazy *(*build)(tp_lazy **x);
    int n;                        /* inputs; all f32 and wanted */
    int64_t shape[MAX_INPUTS][5]; /* rank, sizes */
    double low, high;             /* of the inputs' values */
} grad_case;

#define CASE(name, expression)                                                                               \
    static tp_lazy *build_##name(tp_lazy **x) {                                                              \
        return expression;                                                                                   \
    }

CASE(neg, tp_lazy_neg(x[0]))
CASE(exp, tp_lazy_exp(x[0]))
CASE(log, tp_lazy_log(x[0]))
CASE(sqrt, tp_lazy_sqrt(x[0]))
CASE(rsqrt, tp_lazy_rsqrt(x[0]))
CASE(tanh, tp_lazy_tanh(x[0]))
CASE(sigmoid, tp_lazy_sigmoid(x[0]))
CASE(relu, tp_lazy_relu(x[0]))
CASE(silu, tp_lazy_silu(x[0]))
CASE(gelu, tp_lazy_gelu(x[0]))
CASE(gelu_tanh, tp_lazy_gelu_tanh(x[0]))
CASE(mul_scalar, tp_lazy_mul_scalar(x[0], -1.5))
CASE(add_scalar, tp_lazy_add_scalar(x[0], -1.5))
CASE(add, tp_lazy_add(x[0], x[1]))
CASE(sub, tp_lazy_sub(x[0], x[1]))
CASE(mul, tp_lazy_mul(x[0], x[1]))
CASE(div, tp_lazy_div(x[0], x[1]))
CASE(minimum, tp_lazy_minimum(x[0], x[1]))
CASE(maximum, tp_lazy_maximum(x[0], x[1]))
CASE(where, tp_lazy_where(tp_lazy_cast(INTS(3, 1, 0, 1), TP_U8), x[0], x[1]))
CASE(cast, tp_lazy_cast(tp_lazy_cast(x[0], TP_F16), TP_F32))
CASE(silu_mul, tp_lazy_silu_mul(x[0], x[1]))
CASE(sum, tp_lazy_sum(x[0], 1, false))
CASE(mean, tp_lazy_mean(x[0], -1, true))
CASE(mean_all, tp_lazy_mean(x[0], TP_ALL_DIMS, false))
CASE(max, tp_lazy_max(x[0], 1, false))
CASE(logsumexp, tp_lazy_logsumexp(x[0], 0, false))
CASE(sum_squares, tp_lazy_sum_squares(x, 2))
CASE(softmax, tp_lazy_softmax(x[0], -1))
CASE(softmax_first, tp_lazy_softmax(x[0], 0))
CASE(reshape, tp_lazy_reshape(x[0], 2, (int64_t[]){4, 3}))
CASE(permute, tp_lazy_permute(x[0], (int[]){2, 0, 1}))
CASE(slice, tp_lazy_slice(x[0], 1, 1, 3))
CASE(broadcast, tp_lazy_broadcast(x[0], 3, (int64_t[]){2, 3, 4}))
CASE(pad, tp_lazy_pad(x[0], 0, 1, 2))
CASE(concat, tp_lazy_concat((tp_lazy *[]){x[0], x[1], x[0]}, 3, 1))
CASE(gather, tp_lazy_gather(x[0], INTS(4, 2, 0, 2, 1)))
CASE(scatter_add, tp_lazy_scatter_add(x[0], INTS(4, 2, 0, 2, 1), x[1]))
CASE(matmul, tp_lazy_matmul(x[0], x[1]))
CASE(linear, tp_lazy_linear(x[0], x[1], x[2]))
CASE(lora, tp_lazy_lora_fused(x[0], x[1], x[2], 0.7))
CASE(linear_lora, tp_lazy_linear_lora(x[0], x[1], x[2], x[3], 0.7, x[4]))
CASE(rms_norm, tp_lazy_rms_norm(x[0], NULL, 1e-3))
CASE(rms_norm_weight, tp_lazy_rms_norm(x[0], x[1], 1e-3))
CASE(layer_norm, tp_lazy_layer_norm(x[0], NULL, NULL, 1e-3))
CASE(layer_norm_weight, tp_lazy_layer_norm(x[0], x[1], x[2], 1e-3))
CASE(dropout, tp_lazy_dropout(x[0], INTS(2, 5, 7), 0.4, 3))

static tp_lazy *rope(tp_lazy *x, tp_rope_layout layout) {
    const float frequencies[] = {1.0f, 0.3f};
    return tp_lazy_rope(x, ints(2, (int64_t[]){1, 3}, (int32_t[]){0, 3, 11}),
                        tp_lazy_from_slice(g, cpu, TP_F32, 1, (int64_t[]){2}, frequencies), layout);
}
CASE(rope_half, rope(x[0], TP_ROPE_HALF))
CASE(rope_interleaved, rope(x[0], TP_ROPE_INTERLEAVED))

static tp_lazy *causal_attention(tp_lazy **x) {
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.causal = true;
    options.start = INTS(1, 1);
    options.lengths = INTS(1, 3);
    return tp_lazy_attention(x[0], x[1], x[2], &options);
}
CASE(attention, tp_lazy_attention(x[0], x[1], x[2], NULL))
CASE(attention_causal, causal_attention(x))
CASE(cross_entropy, tp_lazy_cross_entropy(x[0], INTS(3, 4, -1, 0), -1))
CASE(linear_cross_entropy, tp_lazy_linear_cross_entropy(x[0], x[1], INTS(3, 4, -1, 0), -1))

#define X(name) #name, build_##name

static const grad_case cases[] = {
    {X(neg), 1, {{2, 2, 3}}, -2, 2},
    {X(exp), 1, {{2, 2, 3}}, -2, 2},
    {X(log), 1, {{2, 2, 3}}, 0.5, 2},
    {X(sqrt), 1, {{2, 2, 3}}, 0.5, 2},
    {X(rsqrt), 1, {{2, 2, 3}}, 0.5, 2},
    {X(tanh), 1, {{2, 2, 3}}, -2, 2},
    {X(sigmoid), 1, {{2, 2, 3}}, -2, 2},
    {X(relu), 1, {{2, 2, 3}}, -2, 2},
    {X(silu), 1, {{2, 2, 3}}, -2, 2},
    {X(gelu), 1, {{2, 2, 3}}, -2, 2},
    {X(gelu_tanh), 1, {{2, 2, 3}}, -2, 2},
    {X(mul_scalar), 1, {{2, 2, 3}}, -2, 2},
    {X(add_scalar), 1, {{2, 2, 3}}, -2, 2},
    {X(add), 2, {{3, 2, 1, 3}, {2, 4, 1}}, -2, 2},
    {X(sub), 2, {{2, 2, 3}, {0}}, -2, 2},
    {X(mul), 2, {{3, 2, 1, 3}, {2, 4, 1}}, -2, 2},
    {X(div), 2, {{2, 2, 3}, {1, 3}}, 0.5, 2},
    {X(minimum), 2, {{2, 2, 3}, {1, 3}}, -2, 2},
    {X(maximum), 2, {{2, 2, 3}, {2, 2, 1}}, -2, 2},
    {X(where), 2, {{2, 2, 3}, {1, 1}}, -2, 2},
    {X(cast), 1, {{2, 2, 3}}, -2, 2},
    {X(silu_mul), 2, {{2, 2, 3}, {2, 2, 3}}, -2, 2},
    {X(sum), 1, {{3, 2, 3, 2}}, -2, 2},
    {X(mean), 1, {{3, 2, 3, 2}}, -2, 2},
    {X(mean_all), 1, {{2, 2, 3}}, -2, 2},
    {X(max), 1, {{3, 2, 3, 2}}, -2, 2},
    {X(logsumexp), 1, {{2, 4, 2}}, -2, 2},
    {X(sum_squares), 2, {{2, 4, 2}, {1, 3}}, -2, 2},
    {X(softmax), 1, {{2, 2, 4}}, -2, 2},
    {X(softmax_first), 1, {{3, 3, 2, 2}}, -2, 2},
    {X(reshape), 1, {{3, 2, 2, 3}}, -2, 2},
    {X(permute), 1, {{3, 2, 3, 2}}, -2, 2},
    {X(slice), 1, {{2, 2, 4}}, -2, 2},
    {X(broadcast), 1, {{2, 3, 1}}, -2, 2},
    {X(pad), 1, {{2, 2, 3}}, -2, 2},
    {X(concat), 2, {{2, 2, 3}, {2, 2, 1}}, -2, 2},
    {X(gather), 1, {{2, 3, 2}}, -2, 2},
    {X(scatter_add), 2, {{2, 3, 2}, {2, 4, 2}}, -2, 2},
    {X(matmul), 2, {{3, 2, 2, 3}, {2, 3, 4}}, -2, 2},
    {X(matmul), 2, {{2, 2, 3}, {3, 2, 3, 2}}, -2, 2},
    {X(matmul), 2, {{4, 2, 1, 2, 3}, {3, 2, 3, 2}}, -2, 2},
    {X(linear), 3, {{3, 2, 2, 3}, {2, 3, 4}, {1, 4}}, -2, 2},
    {X(lora), 3, {{3, 2, 2, 3}, {2, 3, 2}, {2, 2, 4}}, -1, 1},
    {X(linear_lora), 5, {{3, 2, 2, 3}, {2, 3, 4}, {2, 3, 2}, {2, 2, 4}, {1, 4}}, -1, 1},
    {X(rms_norm), 1, {{2, 2, 4}}, -2, 2},
    {X(rms_norm_weight), 2, {{3, 2, 2, 4}, {1, 4}}, -2, 2},
    {X(layer_norm), 1, {{2, 2, 4}}, -2, 2},
    {X(layer_norm_weight), 3, {{3, 2, 2, 4}, {1, 4}, {1, 4}}, -2, 2},
    {X(rope_half), 1, {{4, 1, 3, 2, 6}}, -2, 2},
    {X(rope_interleaved), 1, {{4, 1, 3, 2, 6}}, -2, 2},
    {X(attention), 3, {{4, 2, 2, 4, 3}, {4, 2, 3, 2, 3}, {4, 2, 3, 2, 3}}, -1, 1},
    {X(attention_causal), 3, {{4, 1, 3, 2, 3}, {4, 1, 4, 1, 3}, {4, 1, 4, 1, 3}}, -1, 1},
    {X(cross_entropy), 1, {{2, 3, 5}}, -2, 2},
    {X(linear_cross_entropy), 2, {{2, 3, 4}, {2, 4, 5}}, -1, 1},
    {X(dropout), 1, {{2, 3, 4}}, -2, 2},
};

#define N_CASES (sizeof cases / sizeof cases[0])

/* ---- finite differences ---- */

/* loss = Σ y · c with fixed random c, so that every element of y has a gradient of its own. */
static tp_lazy *weighted_sum(tp_lazy *y) {
    tp_tensor *c = uniform(tp_lazy_rank(y), tp_lazy_shape(y), -1, 1, 99);
    tp_lazy *loss = tp_lazy_sum(tp_lazy_mul(y, tp_lazy_from_tensor(g, c)), TP_ALL_DIMS, false);
    tp_tensor_release(c);
    return loss;
}

static tp_lazy *record_case(const grad_case *c, tp_tensor **inputs, tp_lazy **x, tp_lazy **y) {
    for (int k = 0; k < c->n; k++) x[k] = tp_lazy_from_tensor(g, inputs[k]);
    *y = c->build(x);
    cr_assert(*y, "%s: %s", c->name, tp_error_message());
    return weighted_sum(*y);
}

static double loss_at(const grad_case *c, tp_tensor **inputs) {
    tp_lazy *x[MAX_INPUTS], *y;
    tp_tensor *out;
    float value;
    tp_graph_reset(g);
    cr_assert_eq(tp_lazy_eval(record_case(c, inputs, x, &y), &out), TP_OK, "%s: %s", c->name,
                 tp_error_message());
    cr_assert_eq(tp_tensor_read(out, TP_F32, &value, sizeof value), TP_OK);
    tp_tensor_release(out);
    return (double)value;
}

static void make_inputs(const grad_case *c, tp_tensor **inputs) {
    for (int k = 0; k < c->n; k++)
        inputs[k] = uniform((int)c->shape[k][0], &c->shape[k][1], c->low, c->high, 17u + (uint64_t)k);
}

static void release_all(tp_tensor **tensors, int n) {
    for (int k = 0; k < n; k++) tp_tensor_release(tensors[k]);
}

static void check_input(const grad_case *c, tp_tensor **inputs, int k, const tp_tensor *gradient) {
    const double h = strcmp(c->name, "cast") ? 5e-3 : 0.25;
    float values[64], got[64];
    size_t count = (size_t)tp_tensor_count(inputs[k]), bytes = count * sizeof(float);
    cr_assert_eq(tp_tensor_read(inputs[k], TP_F32, values, bytes), TP_OK);
    cr_assert_eq(tp_tensor_read(gradient, TP_F32, got, bytes), TP_OK);
    for (size_t i = 0; i < count; i++) {
        float kept = values[i];
        double loss[2];
        for (int side = 0; side < 2; side++) {
            tp_graph_reset(g);
            values[i] = kept + (float)(side ? h : -h);
            cr_assert_eq(tp_tensor_write(inputs[k], values, bytes), TP_OK);
            loss[side] = loss_at(c, inputs);
        }
        values[i] = kept;
        double expected = (loss[1] - loss[0]) / (2 * h);
        cr_expect_lt(fabs(expected - (double)got[i]), 4e-3 * (1 + fabs(expected)),
                     "%s: input %d element %zu: %g, finite difference %g", c->name, k, i, (double)got[i],
                     expected);
    }
    tp_graph_reset(g);
    cr_assert_eq(tp_tensor_write(inputs[k], values, bytes), TP_OK);
}

static void check_case(const grad_case *c) {
    tp_tensor *inputs[MAX_INPUTS], *results[MAX_INPUTS];
    tp_lazy *x[MAX_INPUTS], *grads[MAX_INPUTS], *y;
    make_inputs(c, inputs);
    tp_graph_reset(g);
    tp_lazy *loss = record_case(c, inputs, x, &y);
    cr_assert_eq(tp_graph_grad(g, loss, x, c->n, grads), TP_OK, "%s: %s", c->name, tp_error_message());
    cr_assert_eq(tp_graph_eval(g, grads, c->n, results), TP_OK, "%s: %s", c->name, tp_error_message());
    tp_graph_reset(g);
    for (int k = 0; k < c->n; k++) check_input(c, inputs, k, results[k]);
    release_all(results, c->n);
    release_all(inputs, c->n);
}

Test(autograd, finite_differences) {
    for (size_t i = 0; i < N_CASES; i++) check_case(&cases[i]);
}

/* ---- what rules read ---- */

/* What nodes after the loss read of node `y`: its inputs, its outputs. */
static int reads_of(const tp_lazy *y, const tp_lazy *loss) {
    int reads = TPI_SAVES_NOTHING;
    for (size_t id = loss->id + 1u; id < g->tape.count; id++)
        for (int k = 0; k < g->tape.nodes[id]->record.n_in; k++) {
            const tp_lazy *input = tpi_node_input(g->tape.nodes[id], k);
            if (input == y) reads |= TPI_SAVES_OUTPUT;
            for (int j = 0; j < y->record.n_in; j++)
                if (input == tpi_node_input(y, j)) reads |= TPI_SAVES_INPUTS;
        }
    return reads;
}

Test(autograd, rules_read_what_they_declare) {
    int reads[TPI_OP_COUNT];
    memset(reads, -1, sizeof reads);
    for (size_t i = 0; i < N_CASES; i++) {
        tp_tensor *inputs[MAX_INPUTS];
        tp_lazy *x[MAX_INPUTS], *grads[MAX_INPUTS], *y;
        make_inputs(&cases[i], inputs);
        tp_lazy *loss = record_case(&cases[i], inputs, x, &y);
        cr_assert_eq(tp_graph_grad(g, loss, x, cases[i].n, grads), TP_OK);
        int *seen = &reads[y->record.op];
        *seen = (*seen < 0 ? 0 : *seen) | reads_of(y, loss);
        tp_graph_reset(g);
        release_all(inputs, cases[i].n);
    }
    for (int op = 0; op < TPI_OP_COUNT; op++) {
        if (!tpi_ops[op].vjp || op == TPI_TO_DEVICE) continue; /* that one: test_devices */
        cr_expect_eq(reads[op], tpi_ops[op].saves, "%s: declares %d, reads %d (-1: has no case)",
                     tpi_ops[op].name, tpi_ops[op].saves, reads[op]);
    }
}

/* ---- the walk ---- */

static tp_lazy *leaf(int rank, const int64_t *shape, uint64_t seed) {
    tp_tensor *t = uniform(rank, shape, -1, 1, seed);
    tp_lazy *x = tp_lazy_from_tensor(g, t);
    tp_tensor_release(t);
    return x;
}

#define LEAF(seed, rank, ...) leaf(rank, (int64_t[]){__VA_ARGS__}, seed)

static tp_lazy *sum_all(tp_lazy *x) {
    return tp_lazy_sum(x, TP_ALL_DIMS, false);
}

static float value_of(tp_lazy *x, size_t i) {
    tp_tensor *t;
    float values[64];
    cr_assert_eq(tp_lazy_eval(x, &t), TP_OK, "%s", tp_error_message());
    cr_assert_leq(tp_tensor_count(t), 64);
    cr_assert_eq(tp_tensor_read(t, TP_F32, values, (size_t)tp_tensor_count(t) * sizeof(float)), TP_OK);
    tp_tensor_release(t);
    return values[i];
}

Test(autograd, a_node_used_twice) {
    const float three = 3.0f;
    tp_lazy *x = tp_lazy_from_slice(g, cpu, TP_F32, 0, NULL, &three), *grad;
    tp_lazy *loss = tp_lazy_add(tp_lazy_mul(x, x), tp_lazy_add(x, x));
    cr_assert_eq(tp_graph_grad(g, loss, &x, 1, &grad), TP_OK);
    cr_expect_eq(value_of(grad, 0), 8.0f); /* 2x + 2 */
}

Test(autograd, zeros_ones_and_intermediates) {
    tp_lazy *x = LEAF(1, 1, 3), *other = LEAF(2, 2, 2, 2);
    tp_lazy *y = tp_lazy_exp(x), *loss = sum_all(y), *late = tp_lazy_neg(loss);
    tp_lazy *wrt[] = {x, other, loss, y, late, x}, *grads[6];
    cr_assert_eq(tp_graph_grad(g, loss, wrt, 6, grads), TP_OK, "%s", tp_error_message());
    cr_expect_eq(grads[0], grads[5]);
    cr_expect_eq(tp_lazy_rank(grads[1]), 2);
    cr_expect_eq(value_of(grads[1], 3), 0.0f);
    cr_expect_eq(value_of(grads[2], 0), 1.0f);
    cr_expect_eq(value_of(grads[3], 2), 1.0f);
    cr_expect_eq(value_of(grads[4], 0), 0.0f);
}

static int products_of_shape(int64_t rows, int64_t columns, size_t from) {
    int found = 0;
    for (size_t id = from; id < g->tape.count; id++) {
        const tp_lazy *node = g->tape.nodes[id];
        if (node->record.op != TPI_MATMUL || node->record.rank != 2) continue;
        found += tpi_node_shape(node)[0] == rows && tpi_node_shape(node)[1] == columns;
    }
    return found;
}

Test(autograd, a_frozen_weight_costs_nothing) {
    tp_lazy *x = LEAF(1, 3, 2, 3, 4), *w = LEAF(2, 2, 4, 5), *a = LEAF(3, 2, 4, 2), *b = LEAF(4, 2, 2, 5);
    tp_lazy *loss = sum_all(tp_lazy_linear_lora(x, w, a, b, 2.0, NULL)), *grads[3];
    cr_assert_eq(tp_graph_grad(g, loss, (tp_lazy *[]){a, b}, 2, grads), TP_OK);
    cr_expect_eq(products_of_shape(4, 5, loss->id), 0);
    cr_expect_eq(products_of_shape(4, 2, loss->id), 1);
    for (size_t id = loss->id; id < g->tape.count; id++)
        cr_expect_neq(g->tape.nodes[id]->record.op, TPI_LINEAR_LORA, "the input's gradient is not wanted");
    cr_assert_eq(tp_graph_grad(g, loss, (tp_lazy *[]){w, a, b}, 3, grads), TP_OK);
    cr_expect_eq(products_of_shape(4, 5, loss->id), 1);
}

Test(autograd, gradients_have_the_dtype_of_their_input) {
    tp_lazy *x = tp_lazy_cast(LEAF(1, 2, 3, 4), TP_BF16), *w = tp_lazy_cast(LEAF(2, 2, 4, 5), TP_BF16);
    tp_lazy *a = LEAF(3, 2, 4, 2), *b = LEAF(4, 2, 2, 5), *bias = LEAF(5, 1, 5);
    tp_lazy *wrt[] = {x, w, a, b, bias}, *grads[5];
    tp_lazy *loss = sum_all(tp_lazy_linear_lora(x, w, a, b, 2.0, bias));
    cr_assert_eq(tp_graph_grad(g, loss, wrt, 5, grads), TP_OK, "%s", tp_error_message());
    for (int k = 0; k < 5; k++) cr_expect_eq(tp_lazy_dtype(grads[k]), tp_lazy_dtype(wrt[k]), "input %d", k);
    cr_expect_float_eq(value_of(grads[4], 0), 3.0f, 1e-6f);
}

Test(autograd, integers_carry_no_gradient) {
    tp_lazy *x = LEAF(1, 1, 3), *grad;
    tp_lazy *mask = tp_lazy_cast(tp_lazy_cast(x, TP_I32), TP_F32);
    cr_assert_eq(tp_graph_grad(g, sum_all(tp_lazy_add(x, mask)), &x, 1, &grad), TP_OK, "%s",
                 tp_error_message());
    cr_expect_eq(value_of(grad, 1), 1.0f);
}

Test(autograd, logsumexp_of_nothing_has_a_zero_gradient) {
    tp_lazy *x = tp_lazy_full(g, cpu, TP_F32, 1, (int64_t[]){2}, -(double)INFINITY), *grad;
    cr_assert_eq(tp_graph_grad(g, tp_lazy_logsumexp(x, 0, false), &x, 1, &grad), TP_OK);
    cr_expect_eq(value_of(grad, 0), 0.0f);
}

static void fails(tp_status status, const char *part, tp_lazy *loss, tp_lazy *wrt) {
    tp_lazy *grad = wrt;
    cr_expect_eq(tp_graph_grad(g, loss, &wrt, 1, &grad), status, "%s", part);
    cr_expect_null(grad);
    cr_expect(strstr(tp_error_message(), part), "says \"%s\", not \"%s\"", tp_error_message(), part);
    cr_expect_eq(tp_graph_status(g), status, "the error sticks");
    tp_graph_reset(g);
}

Test(autograd, errors) {
    tp_lazy *x = LEAF(1, 1, 3);
    fails(TP_EINVAL, "the loss has shape [3]", tp_lazy_exp(x), x);
    x = LEAF(1, 1, 3);
    fails(TP_EDTYPE, "wrt[0] is i32", sum_all(x), tp_lazy_cast(x, TP_I32));
    x = LEAF(1, 1, 3);
    fails(TP_EINVAL, "wrt[0] is NULL", sum_all(x), NULL);
    x = LEAF(1, 2, 1, 3);
    fails(TP_EUNSUPPORTED, "cache_write", sum_all(tp_lazy_cache_write(x, x, INTS(1, 0))), x);
    tp_lazy *q = LEAF(1, 4, 1, 2, 1, 3), *mask = LEAF(2, 2, 2, 2);
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.mask = mask;
    fails(TP_EUNSUPPORTED, "no gradient for input 3", sum_all(tp_lazy_attention(q, q, q, &options)), mask);
    tp_tensor *seen;
    x = LEAF(1, 1, 3);
    tp_lazy *loss = sum_all(x);
    cr_assert_eq(tp_lazy_eval(loss, &seen), TP_OK);
    tp_tensor_release(seen);
    fails(TP_EINVAL, "before evaluating", loss, x);
    cr_assert_null(tp_lazy_matmul(LEAF(1, 2, 2, 3), LEAF(2, 2, 4, 5)));
    fails(TP_ESHAPE, "matmul", NULL, NULL);
    x = LEAF(1, 1, 3);
    cr_assert_eq(tp_graph_recompute_begin(g), TP_OK);
    fails(TP_EINVAL, "segment is open", sum_all(x), x);
}

/* ---- recompute ---- */

#define LAYERS 3

/* Layers with a product, a norm, dropout and a value used twice, each a segment if `recompute`. */
static tp_lazy *record_layers(bool recompute, tp_lazy **weights) {
    tp_lazy *x = LEAF(1, 2, 4, 6), *seed = INTS(2, 3, 4);
    for (int k = 0; k < LAYERS; k++) weights[k] = LEAF(10 + (uint64_t)k, 2, 6, 6);
    for (int k = 0; k < LAYERS; k++) {
        if (recompute) cr_assert_eq(tp_graph_recompute_begin(g), TP_OK);
        tp_lazy *h = tp_lazy_matmul(tp_lazy_rms_norm(x, NULL, 1e-5), weights[k]);
        h = tp_lazy_dropout(tp_lazy_mul(tp_lazy_silu(h), h), seed, 0.3, (uint32_t)k);
        x = tp_lazy_add(x, tp_lazy_softmax(h, -1));
        if (recompute) cr_assert_eq(tp_graph_recompute_end(g), TP_OK);
    }
    return sum_all(tp_lazy_mul(x, x));
}

static void layer_gradients(bool recompute, tp_tensor **results) {
    tp_lazy *weights[LAYERS], *grads[LAYERS];
    tp_graph_reset(g);
    tp_lazy *loss = record_layers(recompute, weights);
    cr_assert_eq(tp_graph_grad(g, loss, weights, LAYERS, grads), TP_OK, "%s", tp_error_message());
    cr_assert_eq(tp_graph_eval(g, grads, LAYERS, results), TP_OK, "%s", tp_error_message());
}

/* Fusion may differ between the two, and with it the last bit. */
Test(autograd, recomputing_gives_the_same_gradients) {
    tp_tensor *kept[LAYERS], *again[LAYERS];
    layer_gradients(false, kept);
    layer_gradients(true, again);
    for (int k = 0; k < LAYERS; k++) {
        const float *a = tp_tensor_data(kept[k]), *b = tp_tensor_data(again[k]);
        for (int i = 0; i < 36; i++)
            cr_expect_lt(fabsf(a[i] - b[i]), 1e-6f * (1 + fabsf(a[i])), "layer %d element %d: %g and %g", k,
                         i, (double)a[i], (double)b[i]);
    }
    release_all(kept, LAYERS);
    release_all(again, LAYERS);
}

Test(autograd, the_backward_pass_reads_only_segment_ends) {
    tp_lazy *weights[LAYERS], *grads[LAYERS];
    tp_lazy *loss = record_layers(true, weights);
    int clones = 0;
    cr_assert_eq(tp_graph_grad(g, loss, weights, LAYERS, grads), TP_OK);
    for (size_t id = loss->id + 1u; id < g->tape.count; id++) {
        cr_expect_eq(g->tape.nodes[id]->segment, 0);
        clones += g->tape.nodes[id]->record.op == TPI_SOFTMAX;
        for (int k = 0; k < g->tape.nodes[id]->record.n_in; k++) {
            const tp_lazy *input = tpi_node_input(g->tape.nodes[id], k);
            if (input->id > loss->id || input->segment == 0 || input->record.op == TPI_LEAF) continue;
            cr_expect_eq(input->record.op, TPI_ADD, "reads %s of a segment", tpi_ops[input->record.op].name);
        }
    }
    cr_expect_eq(clones, LAYERS, "each clone is recorded once");
}

static tp_lazy *uniform_leaf(int rank, const int64_t *shape, uint64_t seed) {
    tp_tensor *t = uniform(rank, shape, -1, 1, seed);
    tp_lazy *leaf = tp_lazy_from_tensor(g, t);
    tp_tensor_release(t);
    return leaf;
}

/* What gate and up are kept for gives silu(gate)·up too: it is not kept beside them. */
Test(autograd, a_quick_value_is_made_again) {
    tp_lazy *gate = uniform_leaf(2, (int64_t[]){8, 6}, 1), *up = uniform_leaf(2, (int64_t[]){8, 6}, 2);
    tp_lazy *w = uniform_leaf(2, (int64_t[]){6, 4}, 3),
            *product = tp_lazy_silu_mul(tp_lazy_neg(gate), tp_lazy_neg(up));
    tp_lazy *loss = sum_all(tp_lazy_matmul(product, w)), *wrt[] = {w, gate}, *grads[2];
    tp_tensor *found, *expected;
    cr_assert_eq(tp_graph_grad(g, loss, wrt, 2, grads), TP_OK);
    int clones = 0;
    for (size_t id = loss->id + 1u; id < g->tape.count; id++) {
        clones += g->tape.nodes[id]->record.op == TPI_SILU_MUL;
        for (int k = 0; k < g->tape.nodes[id]->record.n_in; k++)
            cr_expect_neq(tpi_node_input(g->tape.nodes[id], k), product, "the backward pass keeps it");
    }
    cr_expect_eq(clones, 1);
    cr_assert_eq(tp_lazy_eval(grads[0], &found), TP_OK);
    tp_lazy *ones = tp_lazy_ones(g, cpu, TP_F32, 2, (int64_t[]){8, 4});
    cr_assert_eq(tp_lazy_eval(tp_lazy_matmul(tp_lazy_transpose(product, 0, 1), ones), &expected), TP_OK);
    const float *a = tp_tensor_data(found), *b = tp_tensor_data(expected);
    for (int i = 0; i < 24; i++) cr_expect_lt(fabsf(a[i] - b[i]), 1e-5f);
    tp_tensor_release(found), tp_tensor_release(expected);
}

/* d(sum of dx + da)/db of a layer of `lora`, whose backward pass has scaled products. */
static tp_tensor *second_order(tp_lazy *(*lora)(tp_lazy *x, tp_lazy *a, tp_lazy *b)) {
    tp_lazy *x = uniform_leaf(2, (int64_t[]){5, 6}, 1), *a = uniform_leaf(2, (int64_t[]){6, 2}, 2);
    tp_lazy *b = uniform_leaf(2, (int64_t[]){2, 4}, 3), *y = lora(x, a, b), *wrt[] = {x, a}, *first[2],
            *second;
    tp_tensor *out;
    cr_assert_eq(tp_graph_grad(g, sum_all(tp_lazy_mul(y, y)), wrt, 2, first), TP_OK);
    cr_assert_eq(tp_graph_grad(g, tp_lazy_add(sum_all(first[0]), sum_all(first[1])), &b, 1, &second), TP_OK);
    cr_assert_eq(tp_lazy_eval(second, &out), TP_OK);
    tp_graph_reset(g);
    return out;
}

static tp_lazy *fused_lora(tp_lazy *x, tp_lazy *a, tp_lazy *b) {
    return tp_lazy_lora_fused(x, a, b, 3.0);
}
static tp_lazy *composed_lora(tp_lazy *x, tp_lazy *a, tp_lazy *b) {
    return tp_lazy_mul_scalar(tp_lazy_matmul(tp_lazy_matmul(x, a), b), 3.0);
}

Test(autograd, gradients_of_an_adapters_gradients) {
    tp_tensor *found = second_order(fused_lora), *expected = second_order(composed_lora);
    const float *a = tp_tensor_data(found), *b = tp_tensor_data(expected);
    for (int i = 0; i < 8; i++)
        cr_expect_lt(fabsf(a[i] - b[i]), 1e-4f * (1 + fabsf(b[i])), "%g, composed %g", a[i], b[i]);
    tp_tensor_release(found), tp_tensor_release(expected);
}

/* A gradient is a value of its own, also where it is what an assignment gave. */
Test(autograd, a_gradient_is_no_state) {
    tp_tensor *state = uniform(1, (int64_t[]){2}, -1, 1, 1), *gradient;
    const float *before = tp_tensor_data(state), values[2] = {before[0], before[1]};
    tp_lazy *w = uniform_leaf(1, (int64_t[]){2}, 2), *s = tp_lazy_from_tensor(g, state), *dw;
    tp_lazy *held = tp_lazy_assign(s, tp_lazy_mul_scalar(s, 1.0));
    cr_assert_eq(tp_graph_grad(g, sum_all(tp_lazy_mul(w, held)), &w, 1, &dw), TP_OK);
    cr_assert_eq(tp_lazy_eval(dw, &gradient), TP_OK);
    cr_assert_neq(gradient, state);
    cr_expect_eq(memcmp(tp_tensor_data(gradient), values, sizeof values), 0);
    tp_tensor_release(state), tp_tensor_release(gradient);
}

/* ---- faults ---- */

/* Records and differentiates two segments in a graph of its own. */
static tp_status grad_in_new_graph(tp_lazy **grads) {
    tp_graph *own;
    TPI_TRY(tp_graph_create(&own, ctx));
    tp_lazy *w = tp_lazy_ones(own, cpu, TP_F32, 2, (int64_t[]){3, 3}), *x = w;
    for (int k = 0; k < 2; k++) {
        tp_graph_recompute_begin(own);
        x = tp_lazy_softmax(tp_lazy_tanh(tp_lazy_matmul(x, w)), 0);
        tp_graph_recompute_end(own);
    }
    tp_status status = tp_graph_grad(own, sum_all(tp_lazy_mul(x, x)), &w, 1, grads);
    cr_expect_eq(status == TP_OK, grads[0] != NULL);
    tp_graph_destroy(own);
    return status;
}

Test(autograd, every_allocation_may_fail) {
    tp_lazy *grad = NULL;
    tp_status status = TP_ENOMEM;
    int64_t live = tpi_alloc_live(), n = 0;
    while (status != TP_OK && n < 1000) {
        tpi_alloc_fail_at(++n);
        status = grad_in_new_graph(&grad);
        tpi_alloc_fail_at(0);
        cr_assert(status == TP_OK || status == TP_ENOMEM, "%s: %s", tp_status_name(status),
                  tp_error_message());
        cr_assert_eq(tpi_alloc_live(), live, "allocation %d leaks", (int)n);
        grad = NULL;
    }
    cr_expect_eq(status, TP_OK);
    cr_expect_gt(n, 5);
}

/* ---- depth ---- */

Test(autograd, a_chain_of_a_million_nodes, .timeout = 120) {
    const int n = 1000000;
    tp_lazy *x = LEAF(1, 1, 1), *y = x, *grad;
    for (int i = 0; i < n; i++) y = tp_lazy_neg(y);
    cr_assert_eq(tp_graph_grad(g, sum_all(y), &x, 1, &grad), TP_OK, "%s", tp_error_message());
    cr_assert_lt(tp_graph_size(g), 2 * (size_t)n + 16);
    cr_expect_eq(value_of(grad, 0), 1.0f);
}

Test(autograd, a_recomputed_chain_of_a_million_nodes, .timeout = 120) {
    const int n = 1000000;
    tp_lazy *x = LEAF(1, 1, 1), *y = x, *grad;
    cr_assert_eq(tp_graph_recompute_begin(g), TP_OK);
    for (int i = 0; i < n; i++) y = tp_lazy_tanh(y);
    cr_assert_eq(tp_graph_recompute_end(g), TP_OK);
    cr_assert_eq(tp_graph_grad(g, sum_all(y), &x, 1, &grad), TP_OK, "%s", tp_error_message());
    cr_expect_eq(tp_lazy_size(grad, 0), 1);
}
