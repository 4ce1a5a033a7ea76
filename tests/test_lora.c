/* The LoRA layer: eager against lazy, batches, shapes, gradients, and what it refuses. */
#include "model_helpers.h"

static tp_context *ctx;
static tp_device *cpu;

static void setup(void) {
    ctx = make_context();
    cpu = tp_device_cpu(ctx);
}

static void teardown(void) {
    tp_context_destroy(ctx);
    cr_assert_eq(tpi_alloc_live(), 0, "%lld allocations left", (long long)tpi_alloc_live());
}

TestSuite(lora, .init = setup, .fini = teardown);

static tp_lora_layer *make_layer(int64_t in, int64_t out, int64_t rank, double dropout) {
    tp_lora_config config = TP_LORA_CONFIG_INIT;
    config.in_features = in;
    config.out_features = out;
    config.rank = rank;
    config.dropout = dropout;
    tp_lora_layer *layer;
    must(tp_lora_layer_create(&layer, cpu, &config, 7));
    /* B is zero at the start; with random values the update shows. */
    tp_tensor *b;
    must(tp_tensor_randn(cpu, 2, (int64_t[]){out, rank}, 11, &b));
    must(tp_tensor_write(tp_lora_layer_b(layer), tp_tensor_data(b), (size_t)(out * rank) * sizeof(float)));
    tp_tensor_release(b);
    return layer;
}

static tp_tensor *randn(int rank, const int64_t *shape, uint64_t seed) {
    tp_tensor *t;
    must(tp_tensor_randn(cpu, rank, shape, seed, &t));
    return t;
}

/* scaling · x · Aᵀ · Bᵀ in double, row by row. */
static float *by_definition(const tp_lora_layer *layer, const tp_tensor *x) {
    const tp_lora_config *c = tp_lora_layer_config(layer);
    float *a = read_f32(tp_lora_layer_a(layer)), *b = read_f32(tp_lora_layer_b(layer)), *in = read_f32(x);
    int64_t rows = tp_tensor_count(x) / c->in_features;
    float *out = malloc((size_t)(rows * c->out_features) * sizeof *out);
    double *h = malloc((size_t)c->rank * sizeof *h);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t r = 0; r < c->rank; r++) {
            h[r] = 0;
            for (int64_t i = 0; i < c->in_features; i++)
                h[r] += (double)in[row * c->in_features + i] * (double)a[r * c->in_features + i];
        }
        for (int64_t o = 0; o < c->out_features; o++) {
            double sum = 0;
            for (int64_t r = 0; r < c->rank; r++) sum += h[r] * (double)b[o * c->rank + r];
            out[row * c->out_features + o] = (float)(sum * tp_lora_config_scaling(c));
        }
    }
    free(a), free(b), free(in), free(h);
    return out;
}

static void check_forward(int64_t in, int64_t out, int64_t rank, int x_rank, const int64_t *x_shape) {
    tp_lora_layer *layer = make_layer(in, out, rank, 0.0);
    tp_tensor *x = randn(x_rank, x_shape, 3), *eager;
    tp_graph *g = make_graph(ctx);
    must(tp_lora_forward(layer, x, &eager));
    tp_lazy *y = tp_lora_forward_lazy(layer, tp_lazy_from_tensor(g, x));
    cr_assert_eq(tp_lazy_rank(y), x_rank);
    for (int d = 0; d < x_rank - 1; d++) cr_assert_eq(tp_lazy_size(y, d), x_shape[d]);
    cr_assert_eq(tp_lazy_size(y, -1), out);
    tp_tensor *lazy = value_of(y, g);
    cr_assert_lt(tensor_difference(eager, lazy), 1e-5);
    float *wanted = by_definition(layer, x), *got = read_f32(lazy);
    cr_assert_lt(max_difference(wanted, got, (size_t)tp_tensor_count(lazy)), 1e-4);
    free(wanted), free(got);
    tp_tensor_release(eager), tp_tensor_release(lazy), tp_tensor_release(x);
    tp_graph_destroy(g);
    tp_lora_layer_destroy(layer);
}

Test(lora, lora_lazy_vs_eager_correctness) {
    check_forward(512, 512, 8, 2, (int64_t[]){128, 512});
}

Test(lora, lora_lazy_batched_operations) {
    tp_lora_layer *first = make_layer(512, 512, 8, 0.0), *second = make_layer(512, 512, 4, 0.0);
    tp_tensor *x = randn(2, (int64_t[]){128, 512}, 3), *middle, *eager;
    must(tp_lora_forward(first, x, &middle));
    must(tp_lora_forward(second, middle, &eager));
    tp_graph *g = make_graph(ctx);
    tp_lazy *h = tp_lora_forward_lazy(first, tp_lazy_from_tensor(g, x));
    tp_lazy *y = tp_lora_forward_lazy(second, h);
    cr_assert_not(tp_lazy_is_evaluated(h));
    tp_tensor *lazy = value_of(y, g);
    cr_assert(tp_lazy_is_evaluated(y));
    cr_assert_eq(tp_tensor_size(lazy, 0), 128);
    cr_assert_eq(tp_tensor_size(lazy, 1), 512);
    cr_assert_lt(tensor_difference(eager, lazy), 1e-3, "of values up to a few hundred");
    tp_tensor_release(x), tp_tensor_release(middle), tp_tensor_release(eager), tp_tensor_release(lazy);
    tp_graph_destroy(g);
    tp_lora_layer_destroy(first);
    tp_lora_layer_destroy(second);
}

Test(lora, ranks) {
    const int64_t ranks[] = {1, 2, 3, 8, 16, 33, 64};
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++)
        check_forward(48, 48, ranks[i], 2, (int64_t[]){5, 48});
}

Test(lora, shapes) {
    check_forward(1, 1, 1, 2, (int64_t[]){1, 1});
    check_forward(7, 7, 3, 1, (int64_t[]){7});
    check_forward(33, 33, 5, 2, (int64_t[]){17, 33});
    check_forward(20, 20, 4, 2, (int64_t[]){0, 20});
}

Test(lora, batched_three_dimensional_inputs) {
    check_forward(24, 24, 4, 3, (int64_t[]){2, 9, 24});
    check_forward(24, 24, 4, 4, (int64_t[]){2, 3, 5, 24});
}

Test(lora, in_unlike_out) {
    check_forward(16, 40, 4, 3, (int64_t[]){2, 3, 16});
    check_forward(40, 16, 4, 3, (int64_t[]){2, 3, 40});
}

Test(lora, starts_as_nothing) {
    tp_lora_config config = tp_lora_config_square(32, 4);
    cr_assert_float_eq(tp_lora_config_scaling(&config), 2.0, 0);
    tp_lora_layer *layer;
    must(tp_lora_layer_create(&layer, cpu, &config, 1));
    tp_tensor *x = randn(2, (int64_t[]){3, 32}, 3), *y;
    must(tp_lora_forward(layer, x, &y));
    float *values = read_f32(y), *a = read_f32(tp_lora_layer_a(layer));
    for (int i = 0; i < 96; i++) cr_assert_eq(values[i], 0.0f);
    double largest = 0;
    for (int i = 0; i < 128; i++) largest = fmax(largest, fabs((double)a[i]));
    cr_assert_leq(largest, 1.0 / sqrt(32.0));
    cr_assert_gt(largest, 0.8 / sqrt(32.0), "128 uniform values come near the bound");
    free(values), free(a);
    tp_tensor_release(x), tp_tensor_release(y);
    tp_lora_layer_destroy(layer);
}

/* ---- gradients ---- */

/* Σ weights · update(x): a loss whose gradient depends on every output. */
static tp_lazy *loss_of(tp_graph *g, const tp_lora_layer *layer, tp_tensor *x, tp_tensor *weights) {
    tp_lazy *y = tp_lora_forward_lazy(layer, tp_lazy_from_tensor(g, x));
    return tp_lazy_sum(tp_lazy_mul(y, tp_lazy_from_tensor(g, weights)), TP_ALL_DIMS, false);
}

static double loss_value(const tp_lora_layer *layer, tp_tensor *x, tp_tensor *weights) {
    tp_graph *g = make_graph(ctx);
    tp_tensor *t = value_of(loss_of(g, layer, x, weights), g);
    float value;
    must(tp_tensor_read(t, TP_F32, &value, sizeof value));
    tp_tensor_release(t);
    tp_graph_destroy(g);
    return (double)value;
}

/* The loss is linear in each argument alone, so the central difference is exact but for rounding. */
static void check_gradient(const tp_lora_layer *layer, tp_tensor *x, tp_tensor *weights, tp_tensor *wrt,
                           const tp_tensor *gradient) {
    const float step = 0.5f;
    size_t count = (size_t)tp_tensor_count(wrt), bytes = count * sizeof(float);
    float *values = read_f32(wrt), *got = read_f32(gradient);
    for (size_t i = 0; i < count; i++) {
        const float old = values[i];
        values[i] = old + step;
        must(tp_tensor_write(wrt, values, bytes));
        double above = loss_value(layer, x, weights);
        values[i] = old - step;
        must(tp_tensor_write(wrt, values, bytes));
        double below = loss_value(layer, x, weights);
        values[i] = old;
        must(tp_tensor_write(wrt, values, bytes));
        double wanted = (above - below) / (2.0 * (double)step);
        cr_assert_float_eq((double)got[i], wanted, 1e-3 * (1 + fabs(wanted)), "element %zu: %g, expected %g",
                           i, (double)got[i], wanted);
    }
    free(values), free(got);
}

Test(lora, gradients) {
    tp_lora_layer *layer = make_layer(6, 5, 3, 0.0);
    tp_tensor *x = randn(3, (int64_t[]){2, 2, 6}, 3), *weights = randn(3, (int64_t[]){2, 2, 5}, 4);
    tp_tensor *wrt[] = {x, tp_lora_layer_a(layer), tp_lora_layer_b(layer)}, *gradients[3];
    tp_graph *g = make_graph(ctx);
    tp_lazy *nodes[3], *grads[3];
    for (int i = 0; i < 3; i++) nodes[i] = tp_lazy_from_tensor(g, wrt[i]);
    must(tp_graph_grad(g, loss_of(g, layer, x, weights), nodes, 3, grads));
    must(tp_graph_eval(g, grads, 3, gradients));
    for (int i = 0; i < 3; i++) {
        check_gradient(layer, x, weights, wrt[i], gradients[i]);
        tp_tensor_release(gradients[i]);
    }
    tp_tensor_release(x), tp_tensor_release(weights);
    tp_graph_destroy(g);
    tp_lora_layer_destroy(layer);
}

/* ---- dropout ---- */

static tp_tensor *train_forward(const tp_lora_layer *layer, tp_tensor *x, int32_t seed, uint32_t stream) {
    tp_graph *g = make_graph(ctx);
    tp_lazy *s = tp_lazy_from_slice(g, cpu, TP_I32, 1, (int64_t[]){2}, (int32_t[]){seed, 0});
    tp_tensor *y = value_of(tp_lora_forward_train_lazy(layer, tp_lazy_from_tensor(g, x), s, stream), g);
    tp_graph_destroy(g);
    return y;
}

Test(lora, dropout_depends_on_seed_and_stream_alone) {
    tp_lora_layer *layer = make_layer(64, 8, 4, 0.5);
    tp_tensor *x = randn(2, (int64_t[]){16, 64}, 3), *plain;
    tp_tensor *one = train_forward(layer, x, 1, 0), *again = train_forward(layer, x, 1, 0);
    tp_tensor *seed = train_forward(layer, x, 2, 0), *stream = train_forward(layer, x, 1, 1);
    must(tp_lora_forward(layer, x, &plain));
    cr_assert_eq(tensor_difference(one, again), 0);
    cr_assert_gt(tensor_difference(one, seed), 0.1);
    cr_assert_gt(tensor_difference(one, stream), 0.1);
    cr_assert_gt(tensor_difference(one, plain), 0.1);
    tp_tensor_release(x), tp_tensor_release(plain), tp_tensor_release(one), tp_tensor_release(again);
    tp_tensor_release(seed), tp_tensor_release(stream);
    tp_lora_layer_destroy(layer);
}

/* ---- refusals ---- */

Test(lora, refuses_bad_configurations) {
    tp_lora_layer *layer;
    tp_lora_config bad = tp_lora_config_square(8, 0);
    must_fail(tp_lora_layer_create(&layer, cpu, &bad, 0), TP_EINVAL, "rank is 0");
    cr_assert_null(layer);
    cr_assert_eq(tp_lora_config_scaling(&bad), 0);
    bad = tp_lora_config_square(-1, 4);
    must_fail(tp_lora_layer_create(&layer, cpu, &bad, 0), TP_EINVAL, "in_features is -1");
    bad = tp_lora_config_square(8, 4);
    bad.dropout = 1.0;
    must_fail(tp_lora_layer_create(&layer, cpu, &bad, 0), TP_EINVAL, "dropout");
    bad.dropout = (double)NAN;
    must_fail(tp_lora_layer_create(&layer, cpu, &bad, 0), TP_EINVAL, "dropout");
    bad = tp_lora_config_square(8, 4);
    bad.alpha = (double)INFINITY;
    must_fail(tp_lora_layer_create(&layer, cpu, &bad, 0), TP_EINVAL, "alpha");
    bad.size = 1;
    must_fail(tp_lora_layer_create(&layer, cpu, &bad, 0), TP_EINVAL, "size");
    tp_lora_layer_destroy(NULL);
}

Test(lora, refuses_other_features) {
    tp_lora_layer *layer = make_layer(8, 8, 2, 0.0);
    tp_tensor *x = randn(2, (int64_t[]){3, 9}, 3), *y;
    must_fail(tp_lora_forward(layer, x, &y), TP_ESHAPE, "9");
    cr_assert_null(y);
    cr_assert_null(tp_lora_forward_lazy(layer, NULL));
    tp_tensor_release(x);
    tp_lora_layer_destroy(layer);
}

Test(lora, every_allocation_may_fail) {
    tp_lora_config config = tp_lora_config_square(8, 2);
    tp_tensor *x = randn(2, (int64_t[]){3, 8}, 3);
    for (int64_t n = 1;; n++) {
        tp_lora_layer *layer;
        tp_tensor *y = NULL;
        tpi_alloc_fail_at(n);
        tp_status status = tp_lora_layer_create(&layer, cpu, &config, 1);
        if (status == TP_OK) status = tp_lora_forward(layer, x, &y);
        tpi_alloc_fail_at(0);
        tp_tensor_release(y);
        tp_lora_layer_destroy(layer);
        if (status == TP_OK) break;
        cr_assert_eq(status, TP_ENOMEM, "allocation %lld: %s", (long long)n, tp_error_message());
    }
    tp_tensor_release(x);
}
