/* Plans: what hits the cache and what does not, its bound, fused against composed, and no needless copies. */
#include "engine_helpers.h"

#include "core/threads.h"

ENGINE_SUITE(cache);
ENGINE_SUITE(fusion);

/* Views are the planner's work: the reference kernels take any strides, so that no kernel asks for a copy. */
static void views_setup(void) {
    setenv("TP_ISA", "baseline", 1); /* read once; each test is a process */
    engine_setup();
}

TestSuite(views, .init = views_setup, .fini = engine_teardown);

static void reopen(tp_context_options options) {
    close_context();
    options.threads = 2;
    open_context(&options);
}

/* Plans made by evaluating `y`, 0 for a hit; then forgets the recording. */
static uint64_t misses_of(tp_lazy *y) {
    uint64_t before = stats().plan_misses;
    tp_tensor_release(evaluate(y));
    tp_graph_reset(g);
    return stats().plan_misses - before;
}

/* ---- the cache ---- */

Test(cache, same_recording_hits_wherever_it_stands) {
    for (int round = 0; round < 5; round++) {
        tp_lazy *x = random_leaf(2, SHAPE(4, 8), (uint64_t)round + 1), *w = random_leaf(2, SHAPE(8, 2), 9);
        cr_assert_eq(misses_of(tp_lazy_silu(tp_lazy_matmul(x, w))), round == 0);
    }
    random_leaf(1, SHAPE(3), 1); /* other ordinals, same distances */
    tp_lazy *x = random_leaf(2, SHAPE(4, 8), 1), *w = random_leaf(2, SHAPE(8, 2), 9);
    cr_assert_eq(misses_of(tp_lazy_silu(tp_lazy_matmul(x, w))), 0);
    cr_assert_eq(stats().plan_hits, 5);
    cr_assert_eq(stats().plans, 1);
}

static tp_lazy *typed_leaf(tp_dtype dtype, int rank, const int64_t *shape) {
    tp_tensor *t;
    must(tp_tensor_ones(tp_device_cpu(ctx), dtype, rank, shape, &t));
    return leaf_of(t);
}

Test(cache, key_tells_recordings_apart) {
    cr_assert_eq(misses_of(tp_lazy_mul_scalar(typed_leaf(TP_F32, 1, SHAPE(4)), 2)), 1);
    cr_assert_eq(misses_of(tp_lazy_mul_scalar(typed_leaf(TP_F32, 1, SHAPE(4)), 2)), 0);
    cr_assert_eq(misses_of(tp_lazy_mul_scalar(typed_leaf(TP_F32, 1, SHAPE(5)), 2)), 1, "shape");
    cr_assert_eq(misses_of(tp_lazy_mul_scalar(typed_leaf(TP_F32, 2, SHAPE(1, 4)), 2)), 1, "rank");
    cr_assert_eq(misses_of(tp_lazy_mul_scalar(typed_leaf(TP_BF16, 1, SHAPE(4)), 2)), 1, "dtype");
    cr_assert_eq(misses_of(tp_lazy_mul_scalar(typed_leaf(TP_F32, 1, SHAPE(4)), 3)), 1, "attribute");
    cr_assert_eq(misses_of(tp_lazy_add_scalar(typed_leaf(TP_F32, 1, SHAPE(4)), 2)), 1, "operation");
    tp_lazy *x = typed_leaf(TP_F32, 1, SHAPE(4)), *y = typed_leaf(TP_F32, 1, SHAPE(4));
    cr_assert_eq(misses_of(tp_lazy_sub(x, y)), 1);
    x = typed_leaf(TP_F32, 1, SHAPE(4)), y = typed_leaf(TP_F32, 1, SHAPE(4));
    cr_assert_eq(misses_of(tp_lazy_sub(y, x)), 1, "order of inputs");
    x = typed_leaf(TP_F32, 1, SHAPE(4));
    cr_assert_eq(misses_of(tp_lazy_sub(x, x)), 1, "one leaf twice");
}

Test(cache, key_tells_layouts_and_aliases_apart) {
    tp_tensor *t = random_tensor(2, SHAPE(4, 4), 1), *turned, *twin,
              *other = random_tensor(2, SHAPE(4, 4), 2);
    must(tpi_tensor_view(t, TP_F32, 2, SHAPE(4, 4), SHAPE(1, 4), 0, &turned));
    must(tpi_tensor_view(t, TP_F32, 2, SHAPE(4, 4), NULL, 0, &twin));
    cr_assert_eq(misses_of(tp_lazy_neg(tp_lazy_from_tensor(g, t))), 1);
    cr_assert_eq(misses_of(tp_lazy_neg(tp_lazy_from_tensor(g, turned))), 1, "strides");
    cr_assert_eq(misses_of(tp_lazy_neg(tp_lazy_from_tensor(g, twin))), 0);
    cr_assert_eq(misses_of(tp_lazy_add(tp_lazy_from_tensor(g, t), tp_lazy_from_tensor(g, other))), 1);
    cr_assert_eq(misses_of(tp_lazy_add(tp_lazy_from_tensor(g, t), tp_lazy_from_tensor(g, twin))), 1, "alias");
    tp_tensor_release(t), tp_tensor_release(turned), tp_tensor_release(twin), tp_tensor_release(other);
}

Test(cache, key_tells_outputs_and_assignments_apart) {
    for (int variant = 0; variant < 4; variant++)
        for (int round = 0; round < 2; round++) {
            tp_lazy *x = typed_leaf(TP_F32, 1, SHAPE(4)), *y = tp_lazy_neg(x), *z = tp_lazy_exp(y);
            tp_lazy *outputs[] = {variant == 1 ? z : y, variant == 1 ? y : z};
            if (variant == 3) tp_lazy_assign(x, z);
            tp_tensor *r[2];
            uint64_t before = stats().plan_misses;
            must(tp_graph_eval(g, outputs, variant == 2 ? 1 : 2, r));
            cr_assert_eq(stats().plan_misses - before, round == 0, "variant %d, round %d", variant, round);
            for (int i = 0; i < (variant == 2 ? 1 : 2); i++) tp_tensor_release(r[i]);
            tp_graph_reset(g);
        }
}

Test(cache, is_bounded_in_bytes_and_drops_the_oldest) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.cache_bytes = 200 << 10;
    reopen(options);
    for (int64_t n = 1; n <= 64; n++) misses_of(tp_lazy_neg(typed_leaf(TP_F32, 1, &n)));
    tp_context_stats s = stats();
    cr_assert_eq(s.plan_misses, 64);
    cr_assert_leq(s.plan_bytes, options.cache_bytes);
    cr_assert_gt(s.plan_evictions, 0);
    cr_assert_eq(s.plans + s.plan_evictions, 64);
    cr_assert_eq(misses_of(tp_lazy_neg(typed_leaf(TP_F32, 1, SHAPE(63)))), 0, "recent");
    cr_assert_eq(misses_of(tp_lazy_neg(typed_leaf(TP_F32, 1, SHAPE(1)))), 1, "oldest");
}

typedef struct miss_lines {
    int count;
    char last[256];
} miss_lines;

static void keep_misses(void *user, tp_log_level level, const char *line) {
    miss_lines *misses = user;
    (void)level;
    if (!strstr(line, "plan: miss")) return;
    misses->count++;
    snprintf(misses->last, sizeof misses->last, "%s", line);
}

Test(cache, says_why_it_missed) {
    miss_lines misses = {0};
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.verbose = "plan";
    options.log = keep_misses;
    options.log_user = &misses;
    reopen(options);
    for (int i = 0; i < 3; i++) misses_of(tp_lazy_neg(typed_leaf(TP_F32, 1, SHAPE(4))));
    cr_assert_eq(misses.count, 1);
    cr_assert(strstr(misses.last, "the cache is empty"), "%s", misses.last);
    misses_of(tp_lazy_neg(tp_lazy_exp(typed_leaf(TP_F32, 1, SHAPE(4)))));
    cr_assert(strstr(misses.last, "no exp f32[4] at node 1"), "%s", misses.last);
    tp_lazy *y = tp_lazy_neg(typed_leaf(TP_F32, 1, SHAPE(4)));
    must(tp_graph_eval(g, (tp_lazy *[]){y, y}, 2, NULL));
    cr_assert(strstr(misses.last, "other outputs"), "%s", misses.last);
    cr_assert_eq(misses.count, 3);
}

Test(cache, unknown_names_are_errors) {
    tp_context *none;
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.fuse = "-lora,-lorra";
    must_fail(tp_context_create(&none, &options), TP_EINVAL, "'-lorra' is not known; there are lora");
    options.fuse = NULL;
    options.verbose = "plans";
    must_fail(tp_context_create(&none, &options), TP_EINVAL, "'plans'");
    cr_assert_null(none);
}

/* ---- fused against composed ---- */

typedef tp_lazy *(*program)(tp_lazy **x);

static tp_lazy *composed_lora(tp_lazy **x) {
    return tp_lazy_mul_scalar(tp_lazy_matmul(tp_lazy_matmul(x[0], x[1]), x[2]), 0.5);
}
static tp_lazy *composed_linear_lora(tp_lazy **x) {
    return tp_lazy_add(tp_lazy_matmul(x[0], x[3]), composed_lora(x));
}
static tp_lazy *lora_first_with_bias(tp_lazy **x) {
    return tp_lazy_add(composed_lora(x), tp_lazy_add(tp_lazy_matmul(x[0], x[3]), x[4]));
}
static tp_lazy *matmul_bias(tp_lazy **x) {
    return tp_lazy_add(x[4], tp_lazy_matmul(x[0], x[3]));
}
static tp_lazy *matmul_bias_silu(tp_lazy **x) {
    return tp_lazy_silu(matmul_bias(x));
}
static tp_lazy *matmul_relu(tp_lazy **x) {
    return tp_lazy_relu(tp_lazy_matmul(x[0], x[3]));
}
static tp_lazy *matmul_gelu(tp_lazy **x) {
    return tp_lazy_gelu(tp_lazy_matmul(x[0], x[3]));
}
static tp_lazy *matmul_gelu_tanh(tp_lazy **x) {
    return tp_lazy_gelu_tanh(tp_lazy_matmul(x[0], x[3]));
}
static tp_lazy *gated(tp_lazy **x) {
    return tp_lazy_mul(tp_lazy_rope(x[7], x[8], x[9], TP_ROPE_HALF), tp_lazy_silu(x[7]));
}
static tp_lazy *norm_of_sum(tp_lazy **x) {
    return tp_lazy_rms_norm(tp_lazy_add(x[5], x[6]), x[4], 1e-6);
}
static tp_lazy *norm_of_residual(tp_lazy **x) {
    tp_lazy *sum = tp_lazy_add(x[5], x[6]), *norm = tp_lazy_rms_norm(sum, NULL, 1e-6);
    return tp_lazy_softmax(tp_lazy_add(sum, tp_lazy_softmax(norm, 0)), 1);
}
static tp_lazy *two_norms_of_a_sum(tp_lazy **x) {
    tp_lazy *sum = tp_lazy_add(x[5], x[6]);
    return tp_lazy_add(tp_lazy_rms_norm(sum, x[4], 1e-6), tp_lazy_rms_norm(sum, NULL, 1e-5));
}
static tp_lazy *long_chain(tp_lazy **x) {
    tp_lazy *y = x[5];
    for (int i = 0; i < 50; i++) y = tp_lazy_tanh(tp_lazy_add(tp_lazy_mul(y, x[4]), i & 1 ? x[6] : x[5]));
    return y;
}
static tp_lazy *many_inputs(tp_lazy **x) {
    tp_lazy *y = x[5];
    for (int i = 0; i < 12; i++)
        y = tp_lazy_add(y, tp_lazy_slice(x[10], 0, i, i + 1)); /* more than a chain has room for */
    return tp_lazy_div(y, tp_lazy_add_scalar(tp_lazy_exp(x[4]), 1));
}
static tp_lazy *shared_inner_value(tp_lazy **x) {
    tp_lazy *h = tp_lazy_exp(tp_lazy_mul_scalar(x[5], 0.1));
    return tp_lazy_sub(tp_lazy_mul(h, h), tp_lazy_mul(tp_lazy_neg(h), tp_lazy_maximum(h, x[6])));
}
static tp_lazy *where_and_compare(tp_lazy **x) {
    tp_lazy *positive = tp_lazy_compare(x[5], tp_lazy_mul_scalar(x[6], 0.5), TP_GT);
    return tp_lazy_add(tp_lazy_where(positive, tp_lazy_sqrt(tp_lazy_mul(x[5], x[5])), tp_lazy_neg(x[4])),
                       x[6]);
}
static tp_lazy *casts_round(tp_lazy **x) {
    tp_lazy *rough = tp_lazy_cast(tp_lazy_cast(tp_lazy_mul_scalar(x[5], 3), TP_BF16), TP_F32);
    return tp_lazy_sub(rough, tp_lazy_mul_scalar(x[5], 3));
}
static tp_lazy *casts_truncate(tp_lazy **x) {
    tp_lazy *bytes = tp_lazy_cast(tp_lazy_mul_scalar(x[5], 1.4), TP_U8);
    return tp_lazy_where(bytes, tp_lazy_cast(bytes, TP_F32), tp_lazy_neg(x[6]));
}
static tp_lazy *broadcast_views(tp_lazy **x) {
    tp_lazy *column = tp_lazy_slice(x[5], 1, 0, 1), *turned = tp_lazy_transpose(x[11], 0, 1);
    return tp_lazy_mul(tp_lazy_add(tp_lazy_sigmoid(x[5]), column), tp_lazy_silu(turned));
}
static tp_lazy *with_gradients(tp_lazy **x) {
    tp_lazy *grads[3];
    tp_lazy *y = tp_lazy_silu(lora_first_with_bias(x));
    must(tp_graph_grad(g, tp_lazy_mean(tp_lazy_mul(y, y), TP_ALL_DIMS, false),
                       (tp_lazy *[]){x[1], x[2], x[0]}, 3, grads));
    return tp_lazy_add(tp_lazy_matmul(grads[2], tp_lazy_matmul(grads[0], grads[1])), x[5]);
}

static const struct {
    const char *name, *off, *step; /* `step` must be in the plan unless `off` is switched off; NULL: none */
    program record;
} programs[] = {
    {"x·A·B·s", "-lora", "lora/", composed_lora},
    {"x·W + lora", "-linear_lora", "linear_lora/", composed_linear_lora},
    {"lora + (x·W + bias)", "-linear_lora", "linear_lora/", lora_first_with_bias},
    {"bias + x·W", "-linear", " linear/", matmul_bias},
    {"silu(x·W + bias)", "-linear", " linear/", matmul_bias_silu},
    {"relu(x·W)", "-linear", " linear/", matmul_relu},
    {"gelu(x·W)", "-linear", " linear/", matmul_gelu},
    {"gelu_tanh(x·W)", "-linear", " linear/", matmul_gelu_tanh},
    {"up · silu(gate)", "-silu_mul", "silu_mul/", gated},
    {"rms_norm(a + b)", "-add_rms_norm", "add_rms_norm/", norm_of_sum},
    {"the sum used later", "-add_rms_norm", "add_rms_norm/", norm_of_residual},
    {"two norms of a sum", "-add_rms_norm", "add_rms_norm/", two_norms_of_a_sum},
    {"long chain", "-pointwise", "pointwise/", long_chain},
    {"many inputs", "-pointwise", "pointwise/", many_inputs},
    {"shared inner value", "-pointwise", NULL, shared_inner_value},
    {"where, compare", "-pointwise", "pointwise/", where_and_compare},
    {"casts that round", "-pointwise", "pointwise/", casts_round},
    {"casts that truncate", "-pointwise", NULL, casts_truncate},
    {"broadcast views", "-pointwise", "pointwise/", broadcast_views},
    {"gradients", "-linear_lora", NULL, with_gradients},
};
#define PROGRAMS (sizeof programs / sizeof programs[0])

static void make_inputs(tp_lazy **x) {
    tp_tensor *positions;
    int32_t steps[6] = {0, 1, 2, 3, 4, 5};
    x[0] = random_leaf(2, SHAPE(6, 16), 1);
    x[1] = random_leaf(2, SHAPE(16, 4), 2);
    x[2] = random_leaf(2, SHAPE(4, 10), 3);
    x[3] = random_leaf(2, SHAPE(16, 10), 4);
    x[4] = random_leaf(1, SHAPE(10), 5);
    x[5] = random_leaf(2, SHAPE(6, 10), 6);
    x[6] = random_leaf(2, SHAPE(6, 10), 7);
    x[7] = random_leaf(4, SHAPE(1, 6, 2, 8), 8);
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 2, SHAPE(1, 6), steps, &positions));
    x[8] = leaf_of(positions);
    x[9] = random_leaf(1, SHAPE(4), 9);
    x[10] = random_leaf(2, SHAPE(12, 10), 10);
    x[11] = random_leaf(2, SHAPE(10, 6), 11);
}

static float *run_program(size_t p, const char *fuse, int64_t *count) {
    tp_lazy *x[12];
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.fuse = fuse;
    reopen(options);
    make_inputs(x);
    tp_lazy *y = programs[p].record(x);
    must(tp_graph_status(g));
    if (programs[p].step)
        cr_assert_eq(steps_with(&y, 1, programs[p].step) > 0, fuse == NULL, "%s with %s", programs[p].name,
                     fuse ? fuse : "all");
    tp_tensor *out = evaluate(y);
    float *values = values_of(out);
    *count = tp_tensor_count(out);
    tp_tensor_release(out);
    return values;
}

Test(fusion, each_pattern_equals_its_composed_form) {
    static const char *const all_off = "-lora,-linear_lora,-linear,-add_rms_norm,-silu_mul,-pointwise";
    for (size_t p = 0; p < PROGRAMS; p++) {
        int64_t n;
        float *fused = run_program(p, NULL, &n), *one_off = run_program(p, programs[p].off, &n);
        float *composed = run_program(p, all_off, &n);
        for (int64_t i = 0; i < n; i++) {
            double tolerance = 1e-5 * (1 + fabs((double)composed[i]));
            cr_assert(fabs((double)fused[i] - (double)composed[i]) <= tolerance,
                      "%s, element %lld: %g, composed %g", programs[p].name, (long long)i, (double)fused[i],
                      (double)composed[i]);
            cr_assert(fabs((double)one_off[i] - (double)composed[i]) <= tolerance, "%s with %s",
                      programs[p].name, programs[p].off);
        }
        free(fused), free(one_off), free(composed);
    }
}

Test(fusion, a_value_that_is_asked_for_is_not_fused_away) {
    tp_lazy *x[12];
    make_inputs(x);
    tp_lazy *h = tp_lazy_matmul(x[0], x[1]), *y = tp_lazy_mul_scalar(tp_lazy_matmul(h, x[2]), 0.5);
    tp_lazy *outputs[] = {h, y};
    tp_tensor *r[2];
    cr_assert_eq(steps_with(outputs, 2, "lora/"), 0);
    must(tp_graph_eval(g, outputs, 2, r));
    tp_tensor *expected = evaluate(tp_lazy_mul_scalar(tp_lazy_matmul(h, x[2]), 0.5));
    cr_assert_lt(largest_difference(r[1], expected), 1e-5);
    tp_tensor_release(r[0]), tp_tensor_release(r[1]), tp_tensor_release(expected);
}

Test(fusion, cached_plans_pass_the_check) {
    setenv("TP_PLAN_CHECK", "1", 1);
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    reopen(options);
    for (int round = 0; round < 2; round++)
        for (size_t p = 0; p < PROGRAMS; p++) {
            tp_lazy *x[12];
            make_inputs(x);
            cr_assert_eq(misses_of(programs[p].record(x)), round == 0, "%s", programs[p].name);
        }
    unsetenv("TP_PLAN_CHECK");
}

/* ---- views ---- */

Test(views, transposed_operands_cost_no_copy) {
    tp_lazy *a = random_leaf(2, SHAPE(12, 7), 1), *b = random_leaf(2, SHAPE(5, 7), 2);
    tp_lazy *y = tp_lazy_matmul(a, tp_lazy_transpose(b, 0, 1));
    tp_lazy *z = tp_lazy_matmul(tp_lazy_transpose(y, -1, -2), a);
    cr_assert_eq(steps_with(&z, 1, "copy/"), 0);
    tp_tensor *out = evaluate(z), *left, *right, *turned;
    must(tp_tensor_transpose(tpi_node_input(tpi_node_input(y, 1), 0)->value, 0, 1, &turned));
    must(tp_tensor_matmul(a->value, turned, &left));
    tp_tensor_release(turned);
    must(tp_tensor_transpose(left, 0, 1, &turned));
    must(tp_tensor_matmul(turned, a->value, &right));
    cr_assert_lt(largest_difference(out, right), 1e-4);
    tp_tensor_release(out), tp_tensor_release(left), tp_tensor_release(right), tp_tensor_release(turned);
}

Test(views, shape_operations_leave_no_step) {
    tp_lazy *x = random_leaf(3, SHAPE(4, 6, 8), 1);
    tp_lazy *y = tp_lazy_slice(tp_lazy_permute(x, (int[]){2, 0, 1}), 1, 1, 3);
    y = tp_lazy_neg(tp_lazy_broadcast(y, 4, SHAPE(3, 8, 2, 6)));
    char *text;
    must(tp_graph_explain(g, &y, 1, &text));
    cr_assert_eq(strncmp(text, "1 steps", 7), 0, "%s", text);
    tp_free(text);
    float *in = values_of(x->value);
    tp_tensor *out = evaluate(y);
    float *values = values_of(out);
    for (int i = 0; i < 3 * 96; i++)
        cr_assert_eq(values[i], -in[((i / 6 % 2 + 1) * 6 + i % 6) * 8 + i % 96 / 12]);
    free(in), free(values);
    tp_tensor_release(out);
}

Test(views, reshape_copies_what_no_strides_can_express_once) {
    tp_lazy *x = random_leaf(3, SHAPE(4, 6, 8), 1), *turned = tp_lazy_permute(x, (int[]){1, 0, 2});
    tp_lazy *split = tp_lazy_reshape(turned, 5, SHAPE(2, 3, 4, 2, 4)); /* within dimensions: strides do */
    cr_assert_eq(steps_with((tp_lazy *[]){tp_lazy_neg(split)}, 1, "copy/"), 0);
    tp_lazy *merged = tp_lazy_reshape(turned, 2, SHAPE(24, 8));
    tp_lazy *y = tp_lazy_add(tp_lazy_softmax(merged, 0), tp_lazy_softmax(merged, 1));
    cr_assert_eq(steps_with(&y, 1, "copy/"), 1);
    tp_tensor *out = evaluate(merged);
    float *in = values_of(x->value), *values = values_of(out);
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < 8; k++) cr_assert_eq(values[(i * 4 + j) * 8 + k], in[(j * 6 + i) * 8 + k]);
    free(in), free(values);
    tp_tensor_release(out);
}

/* Every reshape of a permuted and sliced block, against reshaping its row-major copy. */
Test(views, reshapes_of_strided_values) {
    static const int64_t targets[][6] = {
        {72},         {6, 12},    {2, 36},    {3, 24},         {2, 3, 12},
        {3, 2, 2, 6}, {1, 72, 1}, {12, 1, 6}, {6, 1, 2, 1, 6}, {2, 2, 3, 2, 3}};
    static const int ranks[] = {1, 2, 2, 2, 3, 4, 3, 3, 5, 5};
    static const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    tp_tensor *block = random_tensor(3, SHAPE(6, 5, 4), 1);
    for (int o = 0; o < 6; o++)
        for (int t = 0; t < 10; t++) {
            tp_lazy *x = tp_lazy_from_tensor(g, block);
            tp_lazy *part = tp_lazy_permute(tp_lazy_slice(x, 1, 1, 4), orders[o]);
            tp_lazy *y = tp_lazy_reshape(part, ranks[t], targets[t]);
            tp_tensor *copy = evaluate(part), *viewed = evaluate(tp_lazy_neg(tp_lazy_neg(y)));
            cr_assert_eq(largest_difference(copy, viewed), 0, "order %d, target %d", o, t);
            tp_tensor_release(copy), tp_tensor_release(viewed);
            tp_graph_reset(g);
        }
    tp_tensor_release(block);
}

/* What inference does without the outputs that only a gradient reads must not cost the vector kernels. */
Test(views, unwanted_outputs_do_not_lose_the_vector_kernel) {
    tp_lazy *q = random_leaf(4, SHAPE(2, 5, 4, 8), 1), *k = random_leaf(4, SHAPE(2, 5, 2, 8), 2);
    const int32_t ids[] = {1, 3, 0};
    tp_lazy *labels = tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_I32, 1, SHAPE(3), ids);
    tp_lazy *loss = tp_lazy_cross_entropy(random_leaf(2, SHAPE(3, 7), 3), labels, -100);
    tp_lazy *outputs[] = {tp_lazy_attention(q, k, k, NULL), loss};
    bool vector = strstr(tp_device_description(tp_device_cpu(ctx)), "avx") != NULL;
#ifndef TAPER_CUSTOM_KERNELS
    vector = false;
#endif
    cr_assert_eq(steps_with(outputs, 2, "attention/avx"), vector);
    cr_assert_eq(steps_with(outputs, 2, "cross_entropy/avx"), vector);
}

/* The caches of two layers, written at the same positions: neither is copied, though a write can fail. */
Test(views, caches_of_all_layers_are_written_in_place) {
    const int32_t first[] = {2};
    tp_lazy *start = tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_I32, 1, SHAPE(1), first);
    tp_lazy *row = random_leaf(3, SHAPE(1, 1, 4), 1), *sums[2];
    for (int i = 0; i < 2; i++) {
        tp_lazy *cache = random_leaf(3, SHAPE(1, 8, 4), (uint64_t)(2 + i));
        sums[i] =
            tp_lazy_sum(tp_lazy_assign(cache, tp_lazy_cache_write(cache, row, start)), TP_ALL_DIMS, false);
    }
    cr_assert_eq(steps_with(sums, 2, "cache_write"), 2);
    cr_assert_eq(steps_with(sums, 2, "copy"), 0);
}
