/* Looking for what is not finite: which step is named and how, what is no fault, and that a failure changes
 * nothing. */
#include "engine_helpers.h"

#include "graph/context.h"
#include "taper/ops.h"

static void detect_setup(void) {
    engine_setup();
    cr_assert_not(tp_context_detect_nonfinite(ctx, true), "off by default");
}

TestSuite(nonfinite, .init = detect_setup, .fini = engine_teardown);

/* A context with these fusions and a log. */
static void reopen(const char *fuse, const char *verbose, tp_log_fn log, void *user) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 2;
    options.fuse = fuse;
    options.verbose = verbose;
    options.log = log;
    options.log_user = user;
    close_context();
    open_context(&options);
    tp_context_detect_nonfinite(ctx, true);
}

/* Evaluation fails, and the message holds both parts. */
static void expect_fault(tp_lazy *y, const char *name, const char *rest) {
    tp_tensor *out;
    must_fail(tp_lazy_eval(y, &out), TP_ENONFINITE, name);
    cr_assert(strstr(tp_error_message(), rest), "no \"%s\" in: %s", rest, tp_error_message());
    cr_assert_null(out);
}

static void expect_pass(tp_lazy *y) {
    tp_tensor *out = evaluate(y);
    tp_tensor_release(out);
}

static tp_lazy *filled(tp_dtype dtype, int rank, const int64_t *shape, double value) {
    return tp_lazy_full(g, tp_device_cpu(ctx), dtype, rank, shape, value);
}

/* ---- what is named ---- */

static tp_lazy *chain_with_log(void) {
    return tp_lazy_mul_scalar(tp_lazy_log(tp_lazy_add_scalar(vector4(3, 4, 1, 5), -2)), 0.5);
}

Test(nonfinite, the_log_of_a_negative_number_is_named) {
    reopen("-pointwise", NULL, NULL, NULL);
    expect_fault(chain_with_log(), "log (kernel ",
                 "step 1 of 3): element [2] of f32 [4] is nan; its inputs are finite");
}

Test(nonfinite, a_fused_chain_names_its_operations) {
    tp_lazy *y = chain_with_log();
    cr_assert_eq(steps_with(&y, 1, "pointwise/"), 1);
    expect_fault(y, "pointwise of add_scalar, log, mul_scalar (kernel ",
                 "step 0 of 1): element [2] of f32 [4] is nan; its inputs are finite");
}

Test(nonfinite, an_overflow_is_named_in_every_dtype) {
    static const double edges[] = {[TP_F32] = 89, [TP_BF16] = 89, [TP_F16] = 12};
    static const tp_dtype dtypes[] = {TP_F32, TP_BF16, TP_F16};
    for (int i = 0; i < 3; i++) {
        tp_dtype dtype = dtypes[i];
        char wanted[64];
        tp_lazy *x = tp_lazy_mul_scalar(vector4(0, -1, 0.1f, 1), edges[dtype]);
        tp_tensor *narrow = evaluate(tp_lazy_cast(x, dtype));
        snprintf(wanted, sizeof wanted, "element [3] of %s [4] is inf; its inputs", tp_dtype_name(dtype));
        expect_fault(tp_lazy_exp(tp_lazy_from_tensor(g, narrow)), "exp (kernel ", wanted);
        tp_tensor_release(narrow);
    }
    expect_fault(tp_lazy_cast(vector4(1, 2, -1e6f, 4), TP_F16), "cast (",
                 "[2] of f16 [4] is -inf; its inputs");
    expect_fault(tp_lazy_log(filled(TP_F32, 0, NULL, -1)), "log (", "element [] of f32 [] is nan");
}

Test(nonfinite, the_first_step_is_named_not_what_follows) {
    tp_lazy *a = random_leaf(2, SHAPE(8, 8), 1);
    tp_lazy *huge = tp_lazy_matmul(tp_lazy_mul_scalar(a, 1e30), tp_lazy_mul_scalar(a, 1e30));
    expect_fault(tp_lazy_softmax(tp_lazy_matmul(huge, a), -1), "matmul (kernel ", "its inputs are finite");
}

Test(nonfinite, of_several_outputs_the_one_at_fault_is_named) {
    tp_lazy *x = random_leaf(2, SHAPE(3, 4), 1), *weight = vector4(1e30f, 1, 1, 1), *gradient;
    tp_lazy *huge = filled(TP_F32, 2, SHAPE(3, 4), 1e30);
    tp_lazy *loss = tp_lazy_sum(tp_lazy_mul(tp_lazy_rms_norm(x, weight, 0), huge), TP_ALL_DIMS, false);
    must(tp_graph_grad(g, loss, &x, 1, &gradient));
    expect_fault(gradient, "rms_norm_grad (kernel ", "of output 0, f32 [3, 4] is");
}

/* ---- leaves ---- */

Test(nonfinite, a_nan_that_comes_in_is_said_to_be_a_leafs) {
    tp_lazy *x = vector4(1, 2, 3, NAN), *y = vector4(1, 2, 3, 4);
    expect_fault(tp_lazy_add(y, x), "add (kernel ",
                 "element [3] of input 1, f32 [4] is nan; it came in with a leaf");
    tp_lazy *halves =
        tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_BF16, 1, SHAPE(2), (uint16_t[]){0x3f80, 0xffc1});
    expect_fault(tp_lazy_neg(halves), "neg (kernel ", "element [1] of input 0, bf16 [2] is nan");
}

Test(nonfinite, strided_operands_are_looked_through) {
    float values[24];
    for (int i = 0; i < 24; i++) values[i] = (float)i;
    values[1 * 12 + 2 * 4 + 3] = NAN;
    tp_lazy *x = leaf_of(tensor_of(3, SHAPE(2, 3, 4), values));
    tp_lazy *turned = tp_lazy_transpose(x, 0, 2); /* [4, 3, 2] */
    expect_fault(tp_lazy_exp(turned), " (kernel ", "element [3, 2, 1] of input 0, f32 [4, 3, 2] is nan");
    expect_fault(tp_lazy_neg(tp_lazy_slice(x, 2, 1, 4)), " (kernel ",
                 "element [1, 2, 2] of input 0, f32 [2, 3, 3]");
    expect_fault(tp_lazy_neg(tp_lazy_slice(x, 2, 3, 4)), " (kernel ",
                 "element [1, 2, 0] of input 0, f32 [2, 3, 1]");
    expect_pass(tp_lazy_neg(tp_lazy_slice(x, 2, 0, 3)));
    expect_pass(tp_lazy_neg(tp_lazy_slice(x, 0, 0, 1)));
}

Test(nonfinite, broadcast_operands_are_looked_through) {
    tp_lazy *row = leaf_of(tensor_of(2, SHAPE(1, 4), (float[]){1, 2, NAN, 4}));
    expect_fault(tp_lazy_mul(random_leaf(2, SHAPE(3, 4), 1), row), "mul (", "element [0, 2] of input 1, f32");
}

/* ---- what is no fault ---- */

Test(nonfinite, infinities_that_come_in_are_no_fault_until_they_make_a_nan) {
    tp_lazy *x = vector4(1, -INFINITY, 3, INFINITY);
    expect_pass(tp_lazy_mul_scalar(x, 2));
    expect_pass(tp_lazy_exp(x));
    expect_pass(tp_lazy_softmax(vector4(1, -INFINITY, 3, 4), -1));
    expect_pass(tp_lazy_softmax(filled(TP_F32, 2, SHAPE(2, 3), -(double)INFINITY), -1));
    expect_fault(tp_lazy_sub(x, x), "sub (kernel ", "element [1] of f32 [4] is nan; its inputs hold no NaN");
}

Test(nonfinite, masking_is_no_fault) {
    tp_lazy *seen = tp_lazy_compare(vector4(1, 2, 3, 4), filled(TP_F32, 0, NULL, 2.5), TP_LT);
    tp_lazy *masked = tp_lazy_where(seen, vector4(5, 6, 7, 8), filled(TP_F32, 0, NULL, -(double)INFINITY));
    expect_pass(tp_lazy_softmax(masked, -1));
    expect_pass(tp_lazy_logsumexp(masked, 0, false));
}

/* Gradients of attention where some queries see no key, by lengths and by a mask. */
static tp_status attend(bool with_mask, double scale) {
    float mask[16];
    tp_lazy *qkv[3], *gradients[3];
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    for (int i = 0; i < 16; i++) mask[i] = i / 4 == 1 || i % 4 == 3 ? -INFINITY : 0;
    for (int i = 0; i < 3; i++) qkv[i] = random_leaf(4, SHAPE(2, 4, 2, 8), (uint64_t)i + 1);
    qkv[2] = tp_lazy_mul_scalar(qkv[2], scale);
    options.lengths = tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_I32, 1, SHAPE(2), (int32_t[]){0, 3});
    if (with_mask) options.mask = leaf_of(tensor_of(2, SHAPE(4, 4), mask));
    tp_lazy *out = tp_lazy_attention(qkv[0], qkv[1], qkv[2], &options);
    tp_lazy *loss = tp_lazy_sum(tp_lazy_mul_scalar(out, scale), TP_ALL_DIMS, false);
    must(tp_graph_grad(g, loss, qkv, 3, gradients));
    tp_status status = tp_graph_eval(g, gradients, 3, NULL);
    tp_graph_reset(g);
    return status;
}

Test(nonfinite, attention_that_sees_no_key_is_no_fault) {
    for (int with_mask = 0; with_mask < 2; with_mask++) {
        must(attend(with_mask, 1));
        must_fail(attend(with_mask, 1e30), TP_ENONFINITE, "attention_grad (kernel ");
    }
}

Test(nonfinite, a_clean_graph_gives_the_same_bits) {
    for (int on = 0; on < 2; on++) {
        tp_context_detect_nonfinite(ctx, on);
        tp_lazy *x = random_leaf(2, SHAPE(16, 8), 1), *w = random_leaf(2, SHAPE(8, 8), 2), *gradient;
        tp_lazy *y = tp_lazy_softmax(tp_lazy_silu(tp_lazy_matmul(tp_lazy_rms_norm(x, NULL, 1e-5), w)), -1);
        tp_lazy *loss = tp_lazy_mean(tp_lazy_mul(y, y), TP_ALL_DIMS, false);
        must(tp_graph_grad(g, loss, &w, 1, &gradient));
        static float first[64];
        tp_tensor *out = evaluate(gradient);
        if (on)
            expect_values(out, first, 0);
        else
            must(tp_tensor_read(out, TP_F32, first, sizeof first));
        tp_tensor_release(out);
        tp_graph_reset(g);
    }
}

/* ---- all or nothing ---- */

/* Writes state, in place where the planner may, and makes a NaN of `x` if it is negative. */
static tp_lazy *record_update(tp_tensor *s, tp_tensor *t, float x) {
    tp_lazy *first = tp_lazy_from_tensor(g, s), *second = tp_lazy_from_tensor(g, t);
    tp_lazy_assign(first, tp_lazy_add_scalar(first, 1));
    tp_lazy_assign(second, tp_lazy_matmul(second, second));
    return tp_lazy_sum(tp_lazy_log(vector4(1, x, 2, 3)), TP_ALL_DIMS, false);
}

Test(nonfinite, a_failure_leaves_state_as_it_was) {
    for (int queued = 0; queued < 2; queued++) {
        tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
        tp_tensor *t = tensor_of(2, SHAPE(2, 2), (float[]){1, 1, 0, 1}), *out;
        tp_lazy *bad = record_update(s, t, -1);
        tp_event *event = NULL;
        if (queued) {
            must(tp_lazy_eval_async(bad, &out, &event));
            must_fail(tp_event_wait(event), TP_ENONFINITE, "log");
            float value;
            must_fail(tp_tensor_read(out, TP_F32, &value, sizeof value), TP_ENONFINITE, "is nan");
            tp_tensor_release(out), tp_event_release(event);
        } else {
            expect_fault(bad, "log", "is nan");
        }
        expect4(s, 1, 2, 3, 4);
        expect4(t, 1, 1, 0, 1);
        tp_graph_reset(g);
        expect_pass(record_update(s, t, 1));
        expect4(s, 2, 3, 4, 5);
        expect4(t, 1, 2, 0, 1);
        tp_graph_reset(g);
        tp_tensor_release(s), tp_tensor_release(t);
    }
}

Test(nonfinite, without_it_nothing_is_looked_at) {
    cr_assert(tp_context_detect_nonfinite(ctx, false), "what was set before");
    tp_tensor *out = evaluate(chain_with_log());
    float values[4];
    must(tp_tensor_read(out, TP_F32, values, sizeof values));
    cr_assert(isnan(values[2]));
    tp_tensor_release(out);
}

Test(nonfinite, allocations_may_fail) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_tensor *t = tensor_of(2, SHAPE(2, 2), (float[]){1, 1, 0, 1});
    for (int64_t n = 1;; n++) {
        tp_lazy *y = record_update(s, t, -1);
        tp_context_trim(ctx);
        tpi_alloc_fail_at(n);
        tp_status status = tp_lazy_eval(y, NULL);
        tpi_alloc_fail_at(0);
        tp_graph_reset(g);
        expect4(s, 1, 2, 3, 4);
        expect4(t, 1, 1, 0, 1);
        if (status == TP_ENONFINITE) break;
        cr_assert_eq(status, TP_ENOMEM, "allocation %lld: %s", (long long)n, tp_error_message());
    }
    tp_tensor_release(s), tp_tensor_release(t);
}

/* ---- switches ---- */

Test(nonfinite, the_environment_switches_it_on) {
    setenv("TP_DETECT_NAN", "1", 1);
    close_context();
    open_context(NULL);
    unsetenv("TP_DETECT_NAN");
    expect_fault(chain_with_log(), "log", "is nan");
    cr_assert(tp_context_detect_nonfinite(ctx, true));
}

static void count_line(void *user, tp_log_level level, const char *line) {
    (void)level;
    *(int *)user += strncmp(line, "kernel:", 7) == 0;
}

Test(nonfinite, kernels_are_timed_as_well) {
    int lines = 0;
    reopen("-pointwise", "kernel", count_line, &lines);
    expect_fault(chain_with_log(), "log", "is nan");
    cr_assert_eq(lines, 2, "%d kernels ran", lines);
}
